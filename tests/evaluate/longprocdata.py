"""LongProc in small: one or two problems of every family, in the benchmark's own schema."""

TRIP = {
    "ground_truth_cities": "Dublin**Manchester**Split",
    "ground_truth_durations": "5**3**7",
    "num_cities": 3,
    "total_days": 13,
    "constraints": [
        {"type": "duration", "city": "Manchester", "num_days": 3},
        {"type": "fixed", "city": "Manchester", "start_day": 5, "end_day": 7},
        {"type": "duration", "city": "Split", "num_days": 7},
        {"type": "duration", "city": "Dublin", "num_days": 5},
    ],
    "connected_cities": [["Dublin", "Split"], ["Manchester", "Split"], ["Dublin", "Manchester"]],
    "disambig_question_text": "You plan to visit 3 European cities for 13 days in total.",
    "estimated_output_tokens": 900,
}
TOM = (
    "Ann's belief on the cup:\n- Step 0: (initial state) {Ann location: hall; cup location: hall's box; Ann sees cup: "
    "True; Ann's belief on cup: hall's box}\n- Step 1: (Ann location changed; cup location unchanged) {Ann location: "
    "attic; cup location: hall's box; Ann sees cup: False; Ann's belief on cup: hall's box}\n"
    "Final Answer: the hall's box"
)
CODE = ["int main() {", "    int a;", "    cin >> a;", "    cout << a + 1 << endl;", "}"]
ROWS = {
    "countdown": [{"nums": [21, 16, 17, 26], "target": 46}, {"nums": [9, 16, 6, 18], "target": 12}],
    "html_to_tsv": [
        {
            "task_id": "W1", "html_path": "webpage/W1.html", "task_topic": "cats",
            "task_description": "(1) Name; (2) Age",
            "gt": "name\tage\nThe Tom\t3\nKit\t1", "tsv_header": "name\tage", "filtering_instruction": "",
        }
    ],
    "path_traversal": [
        {
            "context_nl": "A is a lively city.", "question_repr": ["A", "C"],
            "answer_nl": "From A, take a bus to B.\nFrom B, take a train to C.",
        }
    ],
    "pseudo_to_code": [
        {"problem_id": "1A", "pseudocode_lines": ["main"], "code_lines": CODE,
         "testcases": [[["4"], ["5"]], [["9"], ["10"]]]}
    ],
    "tom_tracking": [{"story_components": "", "story": "Step 0: ...", "question": "Where?", "solution": TOM}],
    "travel_planning": [TRIP],
}  # fmt: skip
PROMPTS = {
    "countdown": "{demonstration}\nNumbers: {nums}\nTarget: {target}",
    "html_to_tsv": "{html_str} {task_topic} {task_description}{filtering_instruction} {tsv_header} {{Your TSV output}}",
    "path_traversal": "{city_context} from {src_city} to {dst_city}",
    "pseudo_to_code": "{pseudocode}",
    "tom_tracking": "{story} {question}",
    "travel_planning": "{demonstration} {problem}",
}

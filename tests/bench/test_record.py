"""The command in a record is one that anybody can run."""

from kvfoot.bench.record import command_line


def test_paths_of_one_machine_are_named_by_their_option() -> None:
    words = [
        "--data",
        "/mnt/x/data",
        "--out=/tmp/a.json",
        "--samples",
        "6",
        "--model",
        "smollm2",
        "/opt/y",
        "--say",
        "a b",
    ]
    assert command_line("python b.py", words) == (
        "python b.py --data DATA --out=OUT --samples 6 --model smollm2 PATH --say 'a b'"
    )
    assert command_line("python b.py", ["results/a.json", "--data-set", "/x"]) == (
        "python b.py results/a.json --data-set DATA_SET"
    )

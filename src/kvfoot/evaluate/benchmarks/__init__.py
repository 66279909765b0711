"""Public benchmarks whose data is downloaded: HELMET and LongBench (the extra `datasets`)."""

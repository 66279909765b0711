"""The Triton kernels on a GPU: checked against their definitions, then timed. As `kvfoot bench kernels`, which it is.

python benchmarks/kernels_gpu.py --out results/gpu/kernels.json
"""

import sys

from kvfoot.cli.app import main

if __name__ == "__main__":
    sys.exit(main(["bench", "kernels", *sys.argv[1:]]))

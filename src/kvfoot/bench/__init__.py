"""Speed and memory measured on the spot, against the hardware's limits: random weights, nothing is downloaded."""

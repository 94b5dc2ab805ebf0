"""The parts of the app: what is common to its two tasks, and one module for each of them."""

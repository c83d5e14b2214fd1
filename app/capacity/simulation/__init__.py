"""A day of tickets in simulated time: the real policy against rivals, and against hindsight."""

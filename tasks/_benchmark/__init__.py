"""The parts of `tasks.benchmark`: its data, its arms, the processes they run in, what is told."""

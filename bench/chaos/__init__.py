"""Is an acknowledged exchange ever lost or doubled? Real processes, killed at random (`python -m bench.chaos`)."""

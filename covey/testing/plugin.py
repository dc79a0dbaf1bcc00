"""The pytest plugin that ships with Covey: fixtures that bring up a cluster on the lab. Loaded by pytest's entry point."""

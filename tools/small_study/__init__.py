"""The small study: tasks that a model of ten million parameters can learn, and the report of its experiments."""

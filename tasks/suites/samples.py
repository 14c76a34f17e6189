"""The sample tasks: three test tasks, and 32 instances of each train task."""

from tasks.suites import Suite, by_official_lists

SUITE = Suite("samples", ("samples",), by_official_lists)

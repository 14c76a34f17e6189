"""Super-NaturalInstructions: test tasks of the official split, 0-shot (paper 5.4); held-out instances if any."""

from tasks.suites import Suite, by_official_lists

SUITE = Suite("super_natural_instructions", ("super_natural_instructions",), by_official_lists)

"""The run engine: definitions, decisions, steps, sandbox. Decisions are pure; steps do the work."""

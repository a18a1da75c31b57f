"""Many jobs planned, run and judged: spec, plan, runner, findings, report."""

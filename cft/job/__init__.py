"""One configuration to a complete record: plan, runner, report, tracking, model card."""

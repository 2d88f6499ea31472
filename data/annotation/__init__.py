"""Who writes the reasoning traces and how: the question, the checks, the rule, the ledger, live and batch work, costs and the report."""

"""The grid: trial identity, plan, ledger, schedule on Ray, MLflow mirror, report and command line."""

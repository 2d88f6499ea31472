"""One file per command of the console script `slotgrid`: its options (`add_command`) and what it does. `orchestrator/slotgrid_cli.py` lists them."""

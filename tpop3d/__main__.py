"""`python3 -m tpop3d` is the command `tpop3d`."""

from tpop3d.cli import main

raise SystemExit(main())

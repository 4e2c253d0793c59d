"""`tpop3d --inspect MAILBOX`: report the state of a mailspool, and change nothing."""

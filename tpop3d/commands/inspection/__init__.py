"""`tpop3d --inspect MAILBOX`: what there is to know of a mailspool. Nothing is changed by it."""

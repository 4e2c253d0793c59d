-- vmail-sql: domains and their mailboxes, as auth-mysql's default queries ask for them.
-- mariadb NAME-OF-THE-DATABASE < vmail-sql.sql

CREATE TABLE IF NOT EXISTS domain (
    domain_name   VARCHAR(255) NOT NULL PRIMARY KEY,
    path          VARCHAR(255) NOT NULL,   -- the directory of its mailboxes, from the root
    unix_user     VARCHAR(32),             -- the system's user who owns them; not root
    password_hash VARCHAR(255),            -- of who administers the domain; not for POP3
    max_popbox    INT                      -- how many mailboxes it may have; not for POP3
) DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci;

CREATE TABLE IF NOT EXISTS popbox (
    local_part    VARCHAR(255) NOT NULL,
    domain_name   VARCHAR(255) NOT NULL,
    password_hash VARCHAR(255),            -- "{scheme}hash", see tpop3d.conf(5); NULL: no login
    mbox_name     VARCHAR(255) NOT NULL,   -- the mailspool, in the directory of the domain
    PRIMARY KEY (local_part, domain_name),
    KEY (domain_name)
) DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci;

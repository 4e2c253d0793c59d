"""Reads the administrator's SQL: a `$(variable)` becomes a parameter, never a part of the text."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpop3d.auth.driver import Login

VARIABLES = ("local_part", "domain", "user", "clienthost")
QUOTES = "'\"`"
COMMENTS = {"/*": "*/", "-- ": "\n", "--\t": "\n", "#": "\n"}  # their beginnings and ends


class Query:
    """A query: `text` is the query as given, `sql` has a `%s` for each of its `names`.

    The C program put names into the text, so queries written for it have quotes around variables.
    Therefore a literal with variables is taken apart: `'$(user)'` becomes `%s`, and `'%$(domain)'`
    becomes `CONCAT('%%', %s)`. A comment has no literals, and may have no variables, since a
    parameter could end it. Raises ValueError, with a text for the administrator, if that fails.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.names: list[str] = []
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("must be UTF-8") from None
        self.sql = ""
        rest = text
        while rest:
            if rest[0] in QUOTES:
                end = _end_of_literal(rest)
                self.sql += self._literal(rest[:end])
            elif rest.startswith(tuple(COMMENTS)):
                end = _end_of_comment(rest)
                self.sql += _doubled(rest[:end])
            else:
                end = next(n for n in range(1, len(rest) + 1) if _is_plain_up_to(rest, n))
                self.sql += "%s".join(_doubled(part) for part in self._split(rest[:end]))
            rest = rest[end:]

    def __str__(self) -> str:
        return self.text

    @property
    def only_looks(self) -> bool:
        """Is its first word SELECT, so that it most likely changes nothing?"""
        return self.sql.lstrip(" \t\r\n(")[:6].upper() == "SELECT"

    def parameters(self, login: Login) -> tuple[str, ...]:
        """The values of the parameters for a login. Raises UnicodeDecodeError."""
        values = {
            "local_part": login.local_part,
            "domain": login.domain,
            "user": login.name,
            "clienthost": login.client.encode(),
        }
        return tuple(values[name].decode() for name in self.names)

    def _literal(self, literal: str) -> str:
        """Translate a quoted piece of the text. Raises ValueError."""
        quote = literal[0]
        parts = self._split(literal[1:-1])
        if len(parts) == 1:
            return _doubled(literal)
        if quote == "`":
            raise ValueError("a variable cannot be a part of the name of a table or a column")
        pieces = ["%s"] * (2 * len(parts) - 1)
        pieces[::2] = [f"{quote}{_doubled(part)}{quote}" if part else "" for part in parts]
        pieces = [piece for piece in pieces if piece]
        return pieces[0] if len(pieces) == 1 else f"CONCAT({', '.join(pieces)})"

    def _split(self, text: str) -> list[str]:
        """Split a piece of the text at its variables, and add them to `names`."""
        before, opening, rest = text.partition("$(")
        parts = [before]
        while opening:
            name, closing, rest = rest.partition(")")
            if not closing or name not in VARIABLES:
                known = ", ".join(f"$({variable})" for variable in VARIABLES)
                raise ValueError(f"unknown variable $({name}); there are {known}")
            self.names.append(name)
            before, opening, rest = rest.partition("$(")
            parts.append(before)
        return parts


def query_or_none(text: str) -> Query | None:
    """Parse a query; returns None for "none". Raises ValueError."""
    if not text:
        raise ValueError("must be a query, or none")
    return None if text.lower() == "none" else Query(text)


def _is_plain_up_to(text: str, position: int) -> bool:
    """Does the plain text end at `position`, with a literal, a comment, or the end of all?"""
    rest = text[position : position + 3]
    return not rest or rest[0] in QUOTES or rest.startswith(tuple(COMMENTS))


def _end_of_comment(text: str) -> int:
    """The end of the comment with which `text` begins. Raises ValueError."""
    end_mark = next(end for begin, end in COMMENTS.items() if text.startswith(begin))
    end = text.find(end_mark, 2 if end_mark == "*/" else 0)
    if end < 0 and end_mark == "*/":
        raise ValueError("has no closing */")
    end = len(text) if end < 0 else end + len(end_mark)
    if "$(" in text[:end]:
        raise ValueError("a variable cannot be in a comment")
    return end


def _end_of_literal(text: str) -> int:
    """The end of the literal or name with which `text` begins. Raises ValueError."""
    quote, position = text[0], 1
    while position < len(text):
        if text[position] == "\\" and quote != "`":
            position += 1  # the next character does not end it
        elif text[position] == quote:
            if text[position + 1 : position + 2] != quote:
                return position + 1
            position += 1  # a doubled quote stands for one
        position += 1
    raise ValueError(f"has no closing {quote}")


def _doubled(text: str) -> str:
    return text.replace("%", "%%")

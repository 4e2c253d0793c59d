"""The administrator's SQL: its variables are parameters, wherever they stand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authkit import login
from tpop3d.auth.mysql import VMAIL_SQL
from tpop3d.auth.sql_query import Query, query_or_none

QUERIES = {
    # as written: as sent, and the parameters
    "SELECT 1": ("SELECT 1", []),
    "SELECT $(user)": ("SELECT %s", ["user"]),
    "SELECT '$(user)'": ("SELECT %s", ["user"]),
    'SELECT "$(user)"': ("SELECT %s", ["user"]),
    "a = $(local_part) AND b = '$(domain)'": ("a = %s AND b = %s", ["local_part", "domain"]),
    "LIKE '%$(domain)'": ("LIKE CONCAT('%%', %s)", ["domain"]),
    "LIKE '%'": ("LIKE '%%'", []),
    "x % 2 = 0": ("x %% 2 = 0", []),
    "'$(local_part)@$(domain)'": ("CONCAT(%s, '@', %s)", ["local_part", "domain"]),
    "'a$(user)b$(domain)c'": ("CONCAT('a', %s, 'b', %s, 'c')", ["user", "domain"]),
    "'$(user)$(user)'": ("CONCAT(%s, %s)", ["user", "user"]),
    "'it''s $(user)'": ("CONCAT('it''s ', %s)", ["user"]),
    r"'it\'s $(user)'": (r"CONCAT('it\'s ', %s)", ["user"]),
    r"'\\' AND $(user)": (r"'\\' AND %s", ["user"]),
    "\"it's\" = '$(user)'": ('"it\'s" = %s', ["user"]),
    "`a'b` = '$(user)'": ("`a'b` = %s", ["user"]),
    "'$(clienthost)'": ("%s", ["clienthost"]),
    "1 /* don't */ = $(user)": ("1 /* don't */ = %s", ["user"]),
    "1 /* don't */ = '$(user)' -- it's": ("1 /* don't */ = %s -- it's", ["user"]),
    "/* 100 % */ $(user)": ("/* 100 %% */ %s", ["user"]),
    "a - -b = $(user)--1": ("a - -b = %s--1", ["user"]),
    "'/*' = $(user) AND '-- '": ("'/*' = %s AND '-- '", ["user"]),
    "a/*/ $(user) */b": None,
    "SELECT 1 /* of $(user) */": None,
    "SELECT 1 -- of $(user)": None,
    "SELECT 1 # of $(user)": None,
    "SELECT 1 /* $(user)": None,
    "SELECT 1 /*": None,
    "/*! $(user) */": None,
    "$(user": None,
    "$(home)": None,
    "$(user[0])": None,
    "$()": None,
    "'$(user)": None,
    "'it's $(user)'": None,
    "`$(user)`": None,
    "'$(nobody)'": None,
}


@pytest.mark.parametrize("text", [text for text, found in QUERIES.items() if found])
def test_variables_become_parameters(text):
    query = Query(text)
    assert (query.sql, query.names) == QUERIES[text]
    assert str(query) == text


@pytest.mark.parametrize("text", [text for text, found in QUERIES.items() if not found])
def test_what_cannot_be_a_parameter_is_an_error(text):
    with pytest.raises(ValueError, match=r"unknown variable|has no closing|cannot be"):
        Query(text)


def test_an_error_names_the_variables_that_there_are():
    with pytest.raises(ValueError, match=r"\$\(local_part\), \$\(domain\), \$\(user\), \$\(clie"):
        Query("$(nobody)")


def test_a_query_may_be_none_but_not_nothing():
    assert query_or_none("none") is None
    assert query_or_none("None") is None
    with pytest.raises(ValueError, match="must be a query, or none"):
        query_or_none("")
    with pytest.raises(ValueError, match="must be UTF-8"):
        query_or_none("SELECT '\udcff'")


def test_values_are_those_of_the_login():
    query = Query("$(user) $(local_part) $(domain) $(clienthost)")
    ann = login("änn".encode(), b"example.org", client="192.0.2.1")
    assert query.parameters(ann) == ("änn@example.org", "änn", "example.org", "192.0.2.1")
    assert query.parameters(login(b"ann")) == ("ann", "ann", "", "")
    with pytest.raises(UnicodeDecodeError):
        query.parameters(login(b"\xffann"))


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_the_text_of_the_query_never_depends_on_the_name(name):
    query = Query(VMAIL_SQL)
    before = query.sql
    assert query.parameters(login(name.encode(), b"d")) == (name, "d")
    assert query.sql == before
    assert before.count("%s") == len(query.names)


@given(st.text("ab%'\"`\\$() user", max_size=30))
def test_whatever_is_written_is_a_query_or_an_error(text):
    try:
        query = Query(text)
    except ValueError:
        return
    assert query.sql.replace("%%", "").count("%") == len(query.names)
    if not query.names:
        assert query.sql.replace("%%", "%") == text

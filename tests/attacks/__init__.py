"""The catalogue of attacks: what a visitor, nobody, a web page or a Hub repository may try.

    make attacks                          all of it, and the table of docs/security.md
    pytest tests/test_attacks.py          a short selection

A class of attacks is a function of `classes` that tries and yields what it tried and whether the
app held. Everything stays on loopback and within bounds of time and memory.
"""

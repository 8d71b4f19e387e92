"""
The test lab: real PostgreSQL servers of every supported major, and the accidents that befall them.

``servers`` finds or fetches a server of a major, ``cluster`` runs one, ``ledger`` puts it under a load whose invariant
proves a restore, ``proxy`` cuts connections, ``smallfs`` fills up. Fixtures that hand these out are in
``tests/conftest.py``.
"""

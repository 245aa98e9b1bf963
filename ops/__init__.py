"""Operations on the host: ``python3 -m ops --help``; the Makefile's targets call it."""

"""Operations on the host: ``python3 -m ops --help``; the Makefile's targets call it.

One folder for each concern. A folder imports from those below it, never from one above::

    cli.py    what can be typed, and how it ends
    local.py  the stack without Docker
    look      what runs, what happened, what is wrong: it changes nothing of the stack
    release   the workers' life: up, scale, deploy, another host
    data      what Redis holds: backup, restore, upgrade
    secrets   passwords and certificates
    engine    Docker and Compose: how commands are run, images, containers, the record of changes
    config    what the files say

All of it needs nothing but Python's standard library.
"""

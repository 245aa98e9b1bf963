"""The configuration: the env files are read and checked before anything is changed."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  #: the checkout


class OpsError(Exception):
    """An operation cannot go on. The message has one line for each problem, and each line says what to fix."""

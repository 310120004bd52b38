"""Airflow of the unit tests: a home of their own, before anything imports it."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
home = tempfile.mkdtemp(prefix="airkafka-home-")
atexit.register(shutil.rmtree, home, ignore_errors=True)
os.environ.setdefault("AIRFLOW_HOME", home)
os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
os.environ.setdefault("AIRFLOW__WORKERS__EXECUTION_API_RETRIES", "1")
os.environ.setdefault("NO_PROXY", "*")
os.environ.setdefault("AIRFLOW__API_AUTH__JWT_SECRET", "no-secret-but-in-this-test-0123456789abcdef0123456789abcdef")

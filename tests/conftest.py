import os
import signal

import hypothesis

# Virtual machines may announce AMX and not grant it: a bfloat16 product then ends in an illegal instruction, and the
# whole test run with it. Read when torch first multiplies; float32 does not use AMX.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

# A shell starts what it runs in the background deaf to Ctrl-C, and programs that we start would be deaf with us.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes, and how long it takes to draw it, says something of the machine alone. Each run has the
# same ones: one that fails is found by whoever changed what it is about.
hypothesis.settings.register_profile(
    "suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], derandomize=True, database=None
)
hypothesis.settings.load_profile("suite")

pytest_plugins = [
    "tests.kafka_broker",
    "tests.mlflow_database",
    "tests.secure_kafka",
    "tests.deploy.observed_stream",
]

"""`tf.distribute` strategies by name."""

import contextlib
import faulthandler
import json
import os
import signal
import sys
import threading

from keras_nfnets import checks
from keras_nfnets.printing import printable
from keras_nfnets.tables import STRATEGIES

# How long workers wait, in seconds. TensorFlow detects within ten seconds that a worker was
# killed or does not answer; the second timeout is for everything else that may hang.
START_TIMEOUT = 600
COLLECTIVE_TIMEOUT = 600

# Ports of workers under Slurm: a hundred for each of a hundred successive jobs, below the
# ports that Linux gives to clients, so that two jobs on one machine do not meet.
SLURM_PORT = 20000


def strategy(name="auto", start_timeout=START_TIMEOUT):
    """Create a `tf.distribute` strategy by name.

    Create it before any other use of TensorFlow, and create models in its `scope()`.

    Args:
        name: str. One of

            - `"none"`: no strategy; TensorFlow's default device.
            - `"mirrored"`: all GPUs of this machine, or its (logical) CPU devices if
              there are no GPUs.
            - `"multi_worker"`: this process is one of the workers that the environment
              variable `TF_CONFIG` lists. If it is not set and Slurm's `srun` started
              several tasks, they are the workers, and `TF_CONFIG` is set accordingly.
              Slurm decides which GPUs a task uses.
            - `"tpu"`: the local TPU, or the one that `TPU_NAME` names.
            - `"auto"`: `"multi_worker"` if `TF_CONFIG` or Slurm's step lists several
              workers, `"tpu"` if `TPU_NAME` is set, `"mirrored"` if there are several
              GPUs, else `"none"`.
        start_timeout: float. Seconds that `"multi_worker"` waits for the other workers
            to start; after that this process ends with exit status 1.

    Returns:
        A `tf.distribute.Strategy`; for `"none"` TensorFlow's default strategy.

    Raises:
        ValueError: the name is unknown, `TF_CONFIG` or the variables of Slurm's step do
            not list the workers and say which of them this process is, or there is no
            TPU.

    Example:

    >>> with strategy("none").scope():
    ...     model = keras_nfnets.NFNetTiny()
    """
    import tensorflow as tf

    checks.one_of("strategy", name, STRATEGIES)
    if name in ("auto", "multi_worker") and not os.environ.get("TF_CONFIG"):
        _set_tf_config_from_slurm(tf)
    if name == "auto":
        name = _automatic(tf)
    if name == "mirrored":
        cpus = tf.config.list_logical_devices("CPU")
        gpus = tf.config.list_logical_devices("GPU")
        return tf.distribute.MirroredStrategy([d.name for d in gpus or cpus])
    if name == "multi_worker":
        return _multi_worker(tf, start_timeout)
    if name == "tpu":
        return _tpu(tf)
    return tf.distribute.get_strategy()


def has_workers(strategy):
    """Whether this process is one of several workers.

    Args:
        strategy: a `tf.distribute.Strategy`.

    Returns:
        A bool.

    Example:

    >>> has_workers(strategy("none"))
    False
    """
    import tensorflow as tf

    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def is_chief(strategy):
    """Whether this process is the one that writes files: the first or only worker.

    Args:
        strategy: a `tf.distribute.Strategy`.

    Returns:
        A bool.

    Example:

    >>> is_chief(strategy("none"))
    True
    """
    if not has_workers(strategy):
        return True
    resolver = strategy.cluster_resolver
    first = "chief" if "chief" in resolver.cluster_spec().jobs else "worker"
    return (resolver.task_type, resolver.task_id) == (first, 0)


def _automatic(tf):
    cluster = _tf_config().get("cluster", {})
    if len([*cluster.get("chief", []), *cluster.get("worker", [])]) > 1:
        return "multi_worker"
    if os.environ.get("TPU_NAME"):
        return "tpu"
    return "mirrored" if len(tf.config.list_physical_devices("GPU")) > 1 else "none"


def _set_tf_config_from_slurm(tf):
    """Set `TF_CONFIG` if this process is one of several tasks of a Slurm step.

    Being an environment variable, it is inherited by a worker that restarts itself.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks == "1":
        return
    try:
        port = SLURM_PORT + int(os.environ["SLURM_JOB_ID"]) % 100 * 100
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            port_base=port,
            # Slurm gives tasks their GPUs. The resolver needs numbers, and without them
            # it would run nvidia-smi, which fails where there is none.
            gpus_per_node=int(tasks),
            gpus_per_task=1,
            auto_set_gpu=False,
        )
        workers = resolver.cluster_spec().as_dict()["worker"]
        # The resolver takes SLURM_PROCID for the index. But it sorts the nodes as text
        # (n10 before n9) and fills one after the other, which Slurm does not always do.
        own_port = port + int(os.environ["SLURM_LOCALID"])
        index = workers.index(f"{os.environ['SLURMD_NODENAME']}:{own_port}")
    except (KeyError, ValueError, RuntimeError) as error:
        received = {
            name: os.environ.get(name)
            for name in (
                *("SLURM_JOB_ID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST"),
                *("SLURM_STEP_TASKS_PER_NODE", "SLURM_PROCID", "SLURM_LOCALID"),
                "SLURMD_NODENAME",
            )
        }
        raise ValueError(
            "SLURM_STEP_NUM_TASKS says that this process is one of several tasks, but "
            "Slurm's variables do not list all of them and say which this one is. Start "
            "the command with srun, set TF_CONFIG, or choose the strategy 'none'. "
            f"Received: {received}"
        ) from error
    os.environ["TF_CONFIG"] = json.dumps(
        {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
    )


def _tf_config():
    text = os.environ.get("TF_CONFIG") or "{}"
    try:
        config = json.loads(text)
        if isinstance(config, dict):
            return config
    except (json.JSONDecodeError, RecursionError):
        pass
    raise ValueError(_tf_config_error(text))


def _tf_config_error(received):
    return (
        "The environment variable TF_CONFIG must list the addresses of all workers and "
        "say which of them this process is, such as "
        '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
        '"task": {"type": "worker", "index": 0}}. Slurm\'s srun with several tasks needs '
        "none. "
        f"Received: TF_CONFIG={received!r}"
    )


def _multi_worker(tf, start_timeout):
    config = _tf_config()
    cluster, task = config.get("cluster"), config.get("task")
    try:
        addresses = cluster[task["type"]]
        if not isinstance(addresses[int(task["index"])], str) or int(task["index"]) < 0:
            raise TypeError
    except (TypeError, KeyError, ValueError, IndexError):
        raise ValueError(_tf_config_error(os.environ.get("TF_CONFIG"))) from None

    workers = [*cluster.get("chief", []), *cluster.get("worker", [])]
    print(
        f"Waiting for all workers of TF_CONFIG to start: {printable(', '.join(workers))}. If "
        f"they do not, this process ends after {start_timeout} seconds.",
        file=sys.stderr,
        flush=True,
    )
    with _time_limit(start_timeout):
        return tf.distribute.MultiWorkerMirroredStrategy(
            communication_options=tf.distribute.experimental.CommunicationOptions(
                timeout_seconds=COLLECTIVE_TIMEOUT
            )
        )


@contextlib.contextmanager
def _time_limit(seconds):
    """Context that ends the process, with status 1, if it takes more than `seconds`.

    TensorFlow waits in native code, where neither other Python threads nor Python's
    handler of Ctrl-C can run. So in this context Ctrl-C ends the process at once.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        handler = in_main_thread and signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            if in_main_thread:
                signal.signal(signal.SIGINT, handler)


def _tpu(tf):
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
    except (ValueError, OSError, tf.errors.OpError) as error:
        raise ValueError(
            "There is no TPU here. Set the environment variable TPU_NAME: to the TPU's "
            "name, or to 'local' on a TPU machine. "
            f"Received: {str(error).strip().splitlines()[0]}"
        ) from error
    return tf.distribute.TPUStrategy(resolver)

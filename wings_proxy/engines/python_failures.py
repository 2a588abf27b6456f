"""How engines written in Python say why they fail: the last line of a traceback, after whatever they put in front.

The sentences are those of vLLM 0.32.0, SGLang 0.5.23 and the libraries both stand on (torch 2.13, transformers 5.19,
huggingface_hub 2.4, safetensors, uvicorn). Where each that was only read stands is in tests/data/failures.
"""

from __future__ import annotations

from wings_proxy.engines.failure_reasons import FailureLine, Reason

# A flag as its name alone: what stands behind it may be a key.
_FLAG = r"--?[A-Za-z][\w-]{0,60}"
_NAME = r"[\w.-]{1,80}"
_SHM_FULL = "shared memory (/dev/shm) is full"

# In front: `re` of what the engine writes before an exception's name; then the reason, the exception, the message, and
# our sentence.
_EXCEPTIONS: tuple[tuple[Reason, str, str, str], ...] = (
    (
        Reason.CUDA_OOM,
        r"(?:torch\.)?(?:cuda\.)?OutOfMemoryError",
        r"(?:CUDA|HIP|XPU) out of memory\. Tried to allocate (?P<size>[\d.]{1,10} [KMG]iB)",
        "the GPU's memory is used up: {size} more were not there",
    ),
    (
        Reason.CUDA_OOM,
        r"RuntimeError|torch\.AcceleratorError",
        r"CUDA (?:error: )?out of memory",
        "the GPU's memory is used up",
    ),
    (
        Reason.KV_CACHE_TOO_SMALL,
        r"ValueError",
        r"No available memory for the cache blocks",
        "the model leaves no memory for the KV cache",
    ),
    (
        Reason.KV_CACHE_TOO_SMALL,
        r"ValueError",
        (
            r"To serve at least one request with the model's max seq len \((?P<tokens>\d{1,12})\), "
            r"\((?P<needed>[\d.]{1,12}) GiB KV cache is needed, which is larger than the "
            r"available KV cache memory \((?P<there>[\d.]{1,12}) GiB\)"
        ),
        "one request of {tokens} tokens needs {needed} GiB of KV cache, and there are {there} GiB",
    ),
    (
        Reason.KV_CACHE_TOO_SMALL,
        r"RuntimeError",
        r"Not enough memory\. Please try to increase --mem-fraction-static",
        "the model leaves no memory for the KV cache",
    ),
    (
        Reason.GPU_MEMORY_TAKEN,
        r"ValueError",
        (
            r"Free memory on device [\w:]{0,20} ?\((?P<free>[\d.]{1,12})/(?P<total>[\d.]{1,12}) GiB\) on startup "
            r"is less than"
        ),
        "only {free} of the GPU's {total} GiB were free at the start",
    ),
    (
        Reason.GPU_MEMORY_TAKEN,
        r"ValueError",
        # The same check of vLLM on a CPU, in other words.
        (
            r"Available memory on node \d{1,5} \((?P<free>[\d.]{1,12})/(?P<total>[\d.]{1,12}) GiB\) on startup "
            r"is less than"
        ),
        "only {free} of the node's {total} GiB of memory were free at the start",
    ),
    (
        Reason.CONTEXT_TOO_LARGE,
        r"ValueError",
        (
            r"(?:Warning: )?User-specified (?:max_model_len|context_length) \((?P<asked>\d{1,12})\) is greater "
            r"than the derived (?:max_model_len|context_length) \((?:\w{1,40}=)?(?P<most>\d{1,12})"
        ),
        "MAX_MODEL_LEN={asked} is more than the model's {most} tokens",
    ),
    (
        Reason.GATED_MODEL,
        r"(?:huggingface_hub\.(?:errors|utils\._errors)\.)?GatedRepoError",
        r"40[13] Client Error",
        "the model is gated, and the engine has no access to it",
    ),
    (
        Reason.GATED_MODEL,
        r"OSError",
        r"You are trying to access a gated repo",
        "the model is gated, and the engine has no access to it",
    ),
    (
        Reason.MODEL_NOT_FOUND,
        r"(?:huggingface_hub\.(?:errors|utils\._validators)\.)?HFValidationError",
        r"Repo id must ",
        "MODEL_PATH is neither a directory of the engine container nor the name of a model",
    ),
    (
        Reason.MODEL_NOT_FOUND,
        r"(?:huggingface_hub\.(?:errors|utils\._errors)\.)?RepositoryNotFoundError",
        r"40[14] Client Error",
        "there is no model of this name, or the engine has no access to it",
    ),
    (
        Reason.MODEL_NOT_FOUND,
        r"OSError",
        r"[^\0]{1,300}? is not a local folder (?:and is not a valid model identifier|or a valid repository name)",
        "MODEL_PATH is neither a directory of the engine container nor the name of a model",
    ),
    (
        Reason.MODEL_NOT_FOUND,
        r"OSError",
        r"[^\0]{1,300}? does not appear to have a file named (?P<file>[\w-]{1,40}(?:\.\w{1,20})+)",
        "there is no {file} in MODEL_PATH",
    ),
    (
        Reason.MODEL_NOT_FOUND,
        r"ValueError",
        r"Invalid repository ID or local directory specified:",
        "MODEL_PATH is neither a model's directory nor the name of a model: there is no config.json",
    ),
    (
        Reason.MODEL_NOT_FOUND,
        r"RuntimeError",
        r"Cannot find any model weights with ",
        "there are no weight files in MODEL_PATH",
    ),
    (
        Reason.MODEL_UNREACHABLE,
        r"OSError",
        r"We couldn't connect to ",
        "the model's server cannot be reached, and there is no copy of the model",
    ),
    (
        Reason.MODEL_UNREACHABLE,
        r"(?:huggingface_hub\.(?:errors|utils\._errors)\.)?LocalEntryNotFoundError",
        r"(?:Cannot find an appropriate cached snapshot folder|An error happened while trying to locate)",
        "the model's server cannot be reached, and there is no copy of the model",
    ),
    (
        Reason.UNSUPPORTED_MODEL,
        r"ValueError",
        r"Model architectures \['(?P<model>\w{1,80})'[^\]]{0,300}\] are not supported for now",
        "this engine does not know the architecture {model}",
    ),
    (
        Reason.UNSUPPORTED_MODEL,
        r"ValueError",
        r"Model architecture (?P<model>\w{1,80}) (?:was supported in vLLM until|is not supported in-tree)",
        "this version of the engine does not have the architecture {model} any more",
    ),
    (
        Reason.UNSUPPORTED_MODEL,
        r"ValueError",
        r"The checkpoint you are trying to load has model type `(?P<model>[\w.-]{1,80})` but Transformers does not ",
        "this engine does not know models of type {model}",
    ),
    (
        Reason.REMOTE_CODE_REFUSED,
        r"RuntimeError|ValueError",
        (
            r"(?:Failed to load the model config\. If the model is a custom model not yet available|"
            r"[^\0]{0,300}?Please pass the argument `trust_remote_code=True`)"
        ),
        "the model's own Python code was not trusted",
    ),
    (
        Reason.WEIGHTS_CORRUPT,
        r"safetensors_rust\.SafetensorError",
        r"Error while deserializing header: (?P<why>\w{1,30}(?: \w{1,30}){0,5})",
        "a weight file cannot be read: {why}",
    ),
    (
        Reason.TP_SIZE_UNFIT,
        r"ValueError",
        (
            r"Total number of attention heads \((?P<heads>\d{1,6})\) must be divisible by tensor parallel size "
            r"\((?P<size>\d{1,6})\)"
        ),
        "{heads} attention heads cannot be shared out among TP_SIZE={size}",
    ),
    (
        Reason.TOO_FEW_GPUS,
        r"ValueError",
        r"World size \((?P<size>\d{1,6})\) is larger than the number of available GPUs \((?P<there>\d{1,6})\)",
        "TP_SIZE wants {size} GPUs, and the engine container has {there}",
    ),
    (Reason.NO_GPU, r"RuntimeError", r"No CUDA GPUs are available", "the engine sees no GPU"),
    (Reason.NO_GPU, r"RuntimeError", r"Found no NVIDIA driver on your system", "the engine finds no GPU driver"),
    (Reason.NO_GPU, r"RuntimeError", r"Failed to infer device type", "the engine sees no accelerator"),
    (
        Reason.NO_GPU,
        r"AssertionError",
        r"Torch not compiled with CUDA enabled",
        "the engine's torch was built without CUDA",
    ),
    (
        Reason.SHARED_MEMORY_TOO_SMALL,
        r"RuntimeError",
        (
            r"unable to (?:write to|open|mmap \d{1,20} bytes from|resize|allocate shared memory\(shm\) for) "
            r"(?:file|shared memory object) </\w{1,80}>[^\0]{0,80}?: "
            r"(?:No space left on device|Cannot allocate memory|Resource temporarily)"
        ),
        _SHM_FULL,
    ),
    (
        Reason.SHARED_MEMORY_TOO_SMALL,
        r"OSError",
        r"\[Errno 28\] No space left on device(?:: '/(?:dev/shm/|psm_)|$)",
        _SHM_FULL,
    ),
    (
        Reason.NCCL_ERROR,
        r"torch\.distributed\.DistBackendError",
        r"NCCL error",
        "NCCL could not connect the GPUs",
    ),
    (
        Reason.NCCL_ERROR,
        r"RuntimeError",
        r"NCCL error: (?P<why>\w{1,30}(?: \w{1,30}){0,5})",
        "NCCL could not connect the GPUs: {why}",
    ),
    (
        Reason.MISSING_MODULE,
        r"ModuleNotFoundError",
        rf"No module named '(?P<module>{_NAME})'",
        "there is no Python module {module} in the engine's image",
    ),
    (
        Reason.MISSING_MODULE,
        r"ImportError",
        r"(?P<library>lib[\w.+-]{1,60}): cannot open shared object file",
        "the library {library} is missing in the engine's image",
    ),
    (Reason.PORT_IN_USE, r"OSError", r"\[Errno 98\] Address already in use", "the engine's port is taken"),
)

# Not exceptions: argparse, the interpreter, uvicorn, and the commands the launch script starts the engine with.
_OTHERS: tuple[tuple[Reason, str, str], ...] = (
    (
        Reason.UNKNOWN_ARGUMENT,
        rf"[\w.-]{{1,40}}: error: unrecognized arguments: (?P<flag>{_FLAG})",
        "the engine does not know the argument {flag}",
    ),
    (
        Reason.INVALID_ARGUMENT,
        rf"[\w.-]{{1,40}}: error: argument (?P<flag>{_FLAG})(?:[/,][^:]{{0,100}})?: (?:invalid|expected|not allowed)",
        "the engine refuses the value of {flag}",
    ),
    (
        Reason.MISSING_MODULE,
        (
            rf"[\w./-]{{1,80}}: (?:Error while finding module specification for '{_NAME}' \(ModuleNotFoundError: )?"
            rf"No module named '?(?P<module>{_NAME})"
        ),
        "there is no Python module {module} in the engine's image",
    ),
    (
        Reason.COMMAND_NOT_FOUND,
        r"(?:env|setsid): (?:failed to execute )?[‘']?(?P<command>[\w.-]{1,40})['’]?: No such file or directory",
        "there is no command {command} in the engine's image",
    ),
)


def exception_lines(prefix: str, *, stamp: str | None = None) -> tuple[FailureLine, ...]:
    """Return the lines of an engine that writes `prefix`, a pattern, in front of its tracebacks or leaves it out.

    A check of settings by pydantic tells the message alone, indented, after `Value error, `. An engine that puts
    `stamp`, a pattern, in front of every line of an error while it serves is believed nothing without it then.
    """
    lead = rf"(?:{prefix})?(?:(?:{{exception}}): |  Value error, )"
    said = [
        FailureLine(
            reason,
            f"(?a:{lead.replace('{exception}', exception)}{message})",
            says,
            None if stamp is None else f"(?a:{stamp}(?:{exception}): {message})",
        )
        for reason, exception, message, says in _EXCEPTIONS
    ]
    plain = [FailureLine(reason, rf"(?:{prefix})?{line}", says) for reason, line, says in _OTHERS]
    return (*said, *plain)

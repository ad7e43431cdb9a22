"""Settings of where models run, and how."""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, PlainValidator, WithJsonSchema
from pydantic_settings import BaseSettings, NoDecode

from attnserve.cuda import CudaOptions
from attnserve.kernels import AUTO

MAX_GPUS = 64
GPU_SETTINGS = ("gpus", "gpu_memory_bytes", "gpu_arena", "cuda_graphs", "tf32_error", "gpu_weights_from")


def parse_gpus(given: object) -> tuple[int, ...]:
    """Numbers of GPUs: "0,1", or a list of them.

    Raises:
        ValueError: says what was expected.
    """
    listed = given.split(",") if isinstance(given, str) else given if isinstance(given, Iterable) else [given]
    words = [str(one).strip() for one in listed]
    numbers = tuple(int(word) for word in words if word.isdecimal() and int(word) < MAX_GPUS)
    if not numbers or len(numbers) != len(words) or len(set(numbers)) != len(numbers):
        raise ValueError(f"expected different numbers from 0 to {MAX_GPUS - 1}, such as 0,1, got {str(given)[:40]!r}")
    return numbers


class ComputeSettings(BaseSettings):
    """Part of `Settings`."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="Where models run. `auto` takes CUDA if a CUDA session can really be made; "
        "`cuda` refuses to start otherwise.",
    )
    kernels: str = Field(
        AUTO,
        min_length=1,
        description="Native kernels for attention on a CPU: `auto` takes the library that came with the package, or "
        "that `make kernels` built in a checkout; `off` none; else the path of one. Without them, and for a model "
        "whose golden they fail, the function bodies in the bundle compute the same, slower.",
        json_schema_extra={"accepts": "`auto`, `off`, path"},
    )
    num_threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="Compute threads per model; 0 is the number of cores this process may use, which is right for one "
        "busy model. Share the cores among several: more threads than cores wait for each other.",
    )
    engines: int = Field(
        1,
        ge=1,
        le=64,
        description="Batches of a model that run at once, each on its share of the threads, all with the same weights. "
        "More than 1 pays where models are so small that a batch keeps no more than one core busy; then one per core.",
    )
    gpus: Annotated[
        tuple[int, ...], NoDecode, PlainValidator(parse_gpus), WithJsonSchema({"accepts": "numbers: `0,1`"})
    ] = Field(
        (0,),
        description="GPUs that every model runs on, as CUDA counts those it sees; a batch goes to the one that has "
        "least to do. `--engines` is of each.",
    )
    gpu_memory_bytes: int = Field(
        0,
        ge=0,
        description="Memory of a GPU that ONNX Runtime's arena of one model may take; 0 is no limit. Where several "
        "models share a GPU: a batch that needs more fails, and none of the others.",
    )
    gpu_arena: Literal["next-power-of-two", "as-requested"] = Field(
        "next-power-of-two",
        description="How a model's memory on a GPU grows: in few large pieces, or, where memory is short, by what is "
        "asked for.",
    )
    cuda_graphs: int = Field(
        0,
        ge=0,
        le=1024,
        description="CUDA graphs a model keeps on each GPU; 0 records none. Batches without maps are padded to few "
        "sizes, and those that come often are launched as a whole. A model whose golden they fail does without.",
    )
    tf32_error: float = Field(
        0.0,
        ge=0,
        le=0.1,
        allow_inf_nan=False,
        description="Error for which float32 products on a GPU may be rounded to TF32: a share of golden's largest "
        "logit, and of a weight. 0 rounds none. Measured when a model is loaded; one that errs by more does without.",
    )

    gpu_weights_from: int = Field(
        -1,
        ge=-1,
        description="Attention weights of an answer, layers x heads x rows x keys, from which they are computed on the "
        "GPU, and queries and keys stay there; 0 is always. -1 measures it when a model is loaded.",
    )

    @property
    def cuda(self) -> tuple[CudaOptions, ...]:
        """What is said of GPUs, for each."""
        return tuple(
            CudaOptions(
                gpu=gpu,
                memory_bytes=self.gpu_memory_bytes,
                arena=self.gpu_arena,
                num_graphs=self.cuda_graphs,
                tf32_error=self.tf32_error,
            )
            for gpu in self.gpus
        )

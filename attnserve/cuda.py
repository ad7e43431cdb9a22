"""How models run on a CUDA device, as options of ONNX Runtime's provider.

https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
"""

from dataclasses import dataclass

CUDA_PROVIDER = "CUDAExecutionProvider"
ARENAS = {"next-power-of-two": "kNextPowerOfTwo", "as-requested": "kSameAsRequested"}


@dataclass(frozen=True, kw_only=True)
class CudaOptions:
    """Of a model's session on one device."""

    gpu: int = 0
    """Which, as CUDA counts those that it sees."""
    memory_bytes: int = 0
    """Most that the arena of a model takes; 0 is no limit."""
    arena: str = "next-power-of-two"
    """How it grows, of `ARENAS`: in few large pieces, or by what is asked."""
    num_graphs: int = 0
    """CUDA graphs that a model keeps at most; 0 records none."""
    tf32_error: float = 0.0
    """Error for which float32 factors are rounded to TF32, ten bits: see `Certificate.allow`. 0 rounds none."""

    def for_provider(self) -> dict[str, str]:
        """By the names that ONNX Runtime has for them."""
        options = {
            "device_id": str(self.gpu),
            "arena_extend_strategy": ARENAS[self.arena],
            # Unless told not to, it rounds them, which no float32 certificate allows.
            "use_tf32": "1" if self.tf32_error else "0",
        }
        if self.memory_bytes:
            options["gpu_mem_limit"] = str(self.memory_bytes)
        if self.num_graphs:
            options["enable_cuda_graph"] = "1"
        return options


DEFAULTS = CudaOptions()

"""The device as the CUDA driver describes it, memory pools included: ``gpu_check.sh`` runs this.

Standard library only, so that it works where torch does not. Prints lines ``name: value``; the exit
code is 3 if there is no device.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import byref, c_char_p, c_int, c_size_t, c_ubyte, c_ushort, c_void_p

MULTIPROCESSORS, MAJOR, MINOR, MEMORY_POOLS = 16, 75, 76, 115  # CUdevice_attribute
PINNED = DEVICE = 1  # CU_MEM_ALLOCATION_TYPE_PINNED, CU_MEM_LOCATION_TYPE_DEVICE


class PoolProperties(ctypes.Structure):
    """CUmemPoolProps of cuda.h, 88 bytes."""

    _fields_ = (
        ("allocation_type", c_int),
        ("handle_types", c_int),
        ("location_type", c_int),
        ("location_id", c_int),
        ("security_attributes", c_void_p),
        ("max_size", c_size_t),
        ("usage", c_ushort),
        ("reserved", c_ubyte * 54),
    )


class Driver:
    """The functions of libcuda; a call that fails raises RuntimeError."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")

    def __call__(self, name: str, *arguments: object) -> None:
        status = getattr(self.library, name)(*arguments)
        if status != 0:
            text = c_char_p()
            self.library.cuGetErrorString(status, byref(text))
            message = text.value.decode() if text.value else f"error {status}"
            raise RuntimeError(f"{name}: {message}")

    def attribute(self, device: int, number: int) -> int:
        value = c_int()
        self("cuDeviceGetAttribute", byref(value), number, device)
        return value.value


def describe(driver: Driver, device: int) -> str:
    """Name, size and architecture."""
    name = ctypes.create_string_buffer(256)
    memory = c_size_t()
    driver("cuDeviceGetName", name, 256, device)
    driver("cuDeviceTotalMem_v2", byref(memory), device)
    major, minor = (driver.attribute(device, number) for number in (MAJOR, MINOR))
    return (
        f"{name.value.decode()}, {memory.value / 2**30:.1f} GiB, compute capability "
        f"{major}.{minor}, {driver.attribute(device, MULTIPROCESSORS)} multiprocessors"
    )


def try_pool(driver: Driver, device: int) -> None:
    """Take memory from a pool as the core does, and give it back."""
    context, pool, memory = c_void_p(), c_void_p(), c_void_p()
    driver("cuDevicePrimaryCtxRetain", byref(context), device)
    driver("cuCtxSetCurrent", context)
    properties = PoolProperties(allocation_type=PINNED, location_type=DEVICE, location_id=device)
    driver("cuMemPoolCreate", byref(pool), byref(properties))
    driver("cuMemAllocFromPoolAsync", byref(memory), c_size_t(2**20), pool, None)
    driver("cuMemFreeAsync", memory, None)
    driver("cuStreamSynchronize", None)
    driver("cuMemPoolDestroy", pool)
    driver("cuDevicePrimaryCtxRelease_v2", device)


def main() -> int:
    """Print what there is."""
    count, version = c_int(), c_int()
    try:
        driver = Driver()
        driver("cuInit", 0)
        driver("cuDriverGetVersion", byref(version))
        driver("cuDeviceGetCount", byref(count))
    except (OSError, RuntimeError) as error:
        print(f"device: none ({error})")
        return 3
    print(f"driver: CUDA {version.value // 1000}.{version.value % 1000 // 10}")
    if count.value == 0:
        print("device: none")
        return 3
    print(f"device: {describe(driver, 0)}" + (f", 1 of {count.value}" if count.value > 1 else ""))
    try:
        supported = driver.attribute(0, MEMORY_POOLS) != 0
        if supported:
            try_pool(driver, 0)
        print(f"memory pools: {'yes, memory was taken and given back' if supported else 'no'}")
    except RuntimeError as error:
        print(f"memory pools: no ({error})")
    return 0


if __name__ == "__main__":
    sys.exit(main())

// A driver's library as NVML's documentation describes it, for machines without one. Two GPUs, of which FAIL tells how
// they fare.
#include <stdio.h>

#ifndef FAIL
#define FAIL 0
#endif
// Whether the first GPU is divided, as MIG does it.
#ifndef PARTS
#define PARTS 0
#endif

typedef struct {
  unsigned long long total, free, used;
} nvmlMemory_t;
typedef struct {
  unsigned gpu, memory;
} nvmlUtilization_t;
typedef struct nvmlDevice_st* nvmlDevice_t;

static int open_count = 0;

int nvmlInit_v2(void) {
  open_count++;
  return FAIL == 1 ? 999 : 0;
}

int nvmlShutdown(void) { return --open_count; }

int opened(void) { return open_count; }

const char* nvmlErrorString(int result) { return result == 15 ? "GPU is lost" : "Unknown Error"; }

int nvmlSystemGetDriverVersion(char* version, unsigned length) {
  snprintf(version, length, "580.95.05");
  return 0;
}

#if FAIL != 2
int nvmlSystemGetCudaDriverVersion_v2(int* version) {
  *version = 13020;
  return 0;
}
#endif

int nvmlDeviceGetCount_v2(unsigned* count) {
  *count = 2;
  return 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t* device) {
  // Above 32 bits, as pointers are: a binding that passes an int loses them.
  *device = (nvmlDevice_t)(0x7f0000000000ULL + index);
  return 0;
}

int nvmlDeviceGetName(nvmlDevice_t device, char* name, unsigned length) {
  snprintf(name, length, "NVIDIA Fake %llu", (unsigned long long)device - 0x7f0000000000ULL);
  return 0;
}

int nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t* memory) {
  if (FAIL == 3) return 15;
  unsigned long long number = (unsigned long long)device - 0x7f0000000000ULL;
  // Of a GPU that is divided not everybody may ask, NVML_ERROR_NO_PERMISSION; of its parts everybody.
  if (PARTS && number == 0) return 4;
  memory->total = (number < 0x100 ? 80ULL : 10ULL) << 30;
  memory->free = (number < 0x100 ? 79ULL : 9ULL) << 30;
  memory->used = 1ULL << 30;
  return 0;
}

int nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned* count) {
  *count = 7;
  return 0;
}

int nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned index, nvmlDevice_t* part) {
  // NVML_ERROR_NOT_FOUND. The second GPU is whole; of the parts of the first one there are two.
  if (!PARTS || (unsigned long long)device != 0x7f0000000000ULL || (index != 1 && index != 4)) return 6;
  *part = (nvmlDevice_t)((unsigned long long)device + 0x100 * index);
  return 0;
}

int nvmlDeviceGetUUID(nvmlDevice_t device, char* uuid, unsigned length) {
  snprintf(uuid, length, "GPU-%llu", (unsigned long long)device - 0x7f0000000000ULL);
  return 0;
}

int nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t* utilization) {
  // Of the second one nobody knows: NVML_ERROR_NOT_SUPPORTED.
  if (((unsigned long long)device & 1) != 0) return 3;
  utilization->gpu = 25;
  utilization->memory = 50;
  return 0;
}

int nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int* major, int* minor) {
  *major = 9;
  *minor = 0;
  return 0;
}

// CUDA's runtime as its documentation describes it, for machines without one. It has LIMIT bytes, and counts.
#include <stdlib.h>

#ifndef LIMIT
#define LIMIT (1ul << 40)
#endif

static int device = -1;
static unsigned long allocated = 0;
static int frees = 0;

int cudaSetDevice(int number) {
  device = number;
  return 0;
}

int cudaHostAlloc(void** pointer, size_t size, unsigned flags) {
  if (flags != 1 || device < 0) return 1;  // cudaErrorInvalidValue
  if (allocated + size > LIMIT) return 2;  // cudaErrorMemoryAllocation
  allocated += size;
  *pointer = malloc(size);
  return 0;
}

int cudaFreeHost(void* pointer) {
  free(pointer);
  frees++;
  return 0;
}

int current_device(void) { return device; }
unsigned long bytes_ever_allocated(void) { return allocated; }
int num_frees(void) { return frees; }

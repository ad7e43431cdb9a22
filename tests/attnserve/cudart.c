// CUDA's runtime as its documentation describes it, for machines without one. It has LIMIT bytes, and counts.
#include <stdlib.h>

#ifndef LIMIT
#define LIMIT (1ul << 40)
#endif

static int device = -1;
static unsigned long allocated = 0;
static int frees = 0;
static int last_error = 0;

int cudaSetDevice(int number) {
  device = number;
  return 0;
}

int cudaHostAlloc(void** pointer, size_t size, unsigned flags) {
  if (flags != 1 || device < 0) return last_error = 1;  // cudaErrorInvalidValue
  if (allocated + size > LIMIT) return last_error = 2;  // cudaErrorMemoryAllocation
  allocated += size;
  *pointer = malloc(size);
  return 0;
}

int cudaFreeHost(void* pointer) {
  free(pointer);
  frees++;
  return 0;
}

int cudaGetLastError(void) {
  int error = last_error;
  last_error = 0;
  return error;
}

int current_device(void) { return device; }
unsigned long bytes_ever_allocated(void) { return allocated; }
int num_frees(void) { return frees; }

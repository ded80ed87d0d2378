#include "f16.cuh"
#include "q4_k.cuh"

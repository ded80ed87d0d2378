// Every type. A kernel that is compiled once per type names one of them.
#pragma once

#include "bf16.cuh"
#include "f16.cuh"
#include "f32.cuh"
#include "iq4_nl.cuh"
#include "iq4_xs.cuh"
#include "mxfp4.cuh"
#include "q2_k.cuh"
#include "q3_k.cuh"
#include "q4_0.cuh"
#include "q4_1.cuh"
#include "q4_k.cuh"
#include "q5_0.cuh"
#include "q5_1.cuh"
#include "q5_k.cuh"
#include "q6_k.cuh"
#include "q8_0.cuh"

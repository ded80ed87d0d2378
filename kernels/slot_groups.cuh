// Which slots of experts are multiplied together: those of one expert, up to 8 at a time.
#pragma once

#include "activations.cuh"

// Slots of a group, and of all of them, at most.
constexpr uint32_t kGroupSlots = 8, kMostGrouped = 256;

// Groups of slots by ascending expert, and within one in their order. Every block of a product finds them for itself: of a few hundred
// slots that takes less time than a kernel before it would.
struct SlotGroups {
    uint32_t n;
    // All slots; where those of each group start, and of the last one end.
    uint8_t order[kMostGrouped];
    uint16_t first[kMostGrouped + 1];
    // That of each group.
    uint16_t expert[kMostGrouped];
    // A bit for each place of `order` with which a group starts.
    uint32_t starts[kMostGrouped / 32];

    // Called by all threads of a block, with the expert of each slot and room in shared memory for kMostGrouped words, which is
    // free again afterwards.
    __device__ __forceinline__ void find(const uint32_t* experts, uint32_t n_slots, uint32_t* keys) {
        if (threadIdx.x < kMostGrouped / 32) starts[threadIdx.x] = 0;
        for (uint32_t slot = threadIdx.x; slot < (n_slots + 3) / 4 * 4; slot += kThreads) {
            keys[slot] = slot < n_slots ? __ldcg(experts + slot) << 16 | slot : ~0u;
        }
        __syncthreads();
        // The place of a slot is how many keys are smaller; its number within its expert, how many of these are the expert's.
        for (uint32_t slot = threadIdx.x; slot < n_slots; slot += kThreads) {
            const uint32_t key = keys[slot], least = key & 0xffff0000;
            uint32_t place = 0, of_others = 0;
            for (uint32_t i = 0; i < n_slots; i += 4) {
                const uint4 four = *reinterpret_cast<const uint4*>(keys + i);
                place += (four.x < key) + (four.y < key) + (four.z < key) + (four.w < key);
                of_others += (four.x < least) + (four.y < least) + (four.z < least) + (four.w < least);
            }
            order[place] = slot;
            if ((place - of_others) % kGroupSlots == 0) atomicOr(starts + place / 32, 1u << place % 32);
        }
        __syncthreads();
        for (uint32_t place = threadIdx.x; place < n_slots; place += kThreads) {
            if (!(starts[place / 32] >> place % 32 & 1)) continue;
            const uint32_t group = starts_before(place);
            first[group] = place;
            expert[group] = keys[order[place]] >> 16;
        }
        if (threadIdx.x == 0) {
            n = starts_before(n_slots);
            first[n] = n_slots;
        }
        __syncthreads();
    }

    // Slot `i` of a group, or KIGO_NO_ROW.
    __device__ __forceinline__ uint32_t slot(uint32_t group, uint32_t i) const {
        const uint32_t place = first[group] + i;
        return place < first[group + 1] ? order[place] : KIGO_NO_ROW;
    }

   private:
    __device__ __forceinline__ uint32_t starts_before(uint32_t place) const {
        uint32_t sum = 0;
        for (uint32_t word = 0; word < place / 32; word++) sum += __popc(starts[word]);
        return place % 32 ? sum + __popc(starts[place / 32] & ((1u << place % 32) - 1)) : sum;
    }
};

// The mixture of experts that `step` is at, as a block knows it, and the way of who fetches through the experts that are used.
#pragma once

#include "common.cuh"

namespace {

constexpr uint32_t kNoExpert = ~0u;

// What a block knows of the mixture at hand.
struct Mixture {
    // The experts that are used, the one with the largest logit first, each with the number of its mixture in the upper half: who
    // waits for the choice waits for that. Their logits.
    uint32_t experts[KIGO_MAX_EXPERTS_USED];
    float logits[KIGO_MAX_EXPERTS_USED];
    // What the products of what each of them gave are multiplied with; what the sums of the router are.
    float factors[KIGO_MAX_EXPERTS_USED];
    float router_factor;
    // The router's weights are there.
    uint64_t router_full;
    // router_factor is there.
    uint64_t normed;

    // Number i of the experts that mixture `number` uses; kNoExpert while nobody has chosen it.
    __device__ __forceinline__ uint32_t chosen(uint32_t i, uint32_t number) const {
        uint32_t word;
        const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(experts + i));
        asm volatile("ld.acquire.cta.shared.u32 %0, [%1];" : "=r"(word) : "r"(at) : "memory");
        return word >> 16 == number ? word & 0xffff : kNoExpert;
    }

    __device__ __forceinline__ void choose(uint32_t i, uint32_t number, uint32_t expert, float logit) {
        logits[i] = logit;
        const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(experts + i));
        asm volatile("st.release.cta.shared.u32 [%0], %1;" ::"r"(at), "r"(number << 16 | expert) : "memory");
    }
};

// What who fetches a warp's pieces of experts needs from item to item.
struct ExpertRoute {
    uint64_t weights;
    // The item, which of the experts that are used, and the item's number among those of that expert.
    uint32_t item, of_used, of_expert;
    // KigoStage::per_expert and so on.
    uint32_t per_expert, n_tiles, n_used;
    // Where an item has tiles of all experts: the first and every n-th are this warp's.
    uint32_t first, n_groups;
    // Whether each expert multiplies with a vector of its own.
    uint32_t has_own;
    // 2^32 / n_records, rounded up: divisions take a fetching lane long.
    uint32_t inverse;
};

// The way through a stage of experts: from one tile, or pair of tiles, to the next.
struct ExpertPath {
    ExpertRoute route;
    const Mixture& mixture;

    __device__ __forceinline__ void open_stage(const KigoStage& s, uint32_t item, uint32_t group) {
        const uint32_t n_groups = s.n_used / s.n_turns, of_used = s.per_expert ? item / s.per_expert : group;
        const uint32_t of_expert = s.per_expert ? item % s.per_expert : item, has_own = s.take == KIGO_TAKE_EXPERTS;
        route = {s.weights, item, of_used, of_expert, s.per_expert, s.n_tiles, s.n_used, group, n_groups, has_own, ~0u / s.n_records + 1};
    }

    __device__ __forceinline__ uint32_t chosen(uint32_t number) const { return mixture.chosen(route.of_used, number); }

    // Tiles of all experts stand one after the other.
    __device__ __forceinline__ uint32_t first_tile(uint32_t expert, uint32_t per_item) const {
        return expert * route.n_tiles + (route.per_expert ? route.of_expert * per_item : route.item);
    }

    // number % n_records, for tiles whose records are fewer than 2^32.
    __device__ __forceinline__ uint32_t first_place(uint32_t number, uint32_t n_records) const {
        return n_records == 1 ? 0 : number - __umulhi(number, route.inverse) * n_records;
    }

    __device__ __forceinline__ const uint8_t* weights() const { return reinterpret_cast<const uint8_t*>(route.weights); }

    // Records before those of the vector that the expert multiplies with.
    __device__ __forceinline__ uint32_t more(uint32_t n_records) const { return route.has_own ? route.of_used * n_records : 0; }

    __device__ __forceinline__ void advance() {
        if (route.per_expert) {
            route.item += gridDim.x;
            route.of_expert += gridDim.x;
            while (route.of_expert >= route.per_expert) {
                route.of_expert -= route.per_expert;
                route.of_used++;
            }
        } else if ((route.of_used += route.n_groups) >= route.n_used) {
            route.of_used = route.first;
            route.item += gridDim.x;
        }
    }
};

}  // namespace

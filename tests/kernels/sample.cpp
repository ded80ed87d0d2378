// The samplers' kernels on the CPU: sample N_VOCAB N_ROWS N_STEPS SEED < input > output
//
// Input: KigoSampler [n_rows], whose `window` is 1 where there is one; u32 [n_rows][window_len], the latest tokens of those; f32
// [n_steps][n_rows][n_vocab]. Output: u64 [n_steps][n_rows], outcomes.
#include "sample.cu"

template <class T>
static void read(T* to, size_t n) {
    if (fread(to, sizeof(T), n, stdin) != n) emulator::fail("the input ends early");
}

template <class T>
static uint64_t address(T* at) { return reinterpret_cast<uint64_t>(at); }

int main(int argc, char** argv) {
    if (argc != 5) emulator::fail("expected N_VOCAB N_ROWS N_STEPS SEED");
    const uint32_t n_vocab = atoi(argv[1]), n_rows = atoi(argv[2]), n_steps = atoi(argv[3]);
    srand(atoi(argv[4]));
    std::vector<KigoSampler> samplers(n_rows);
    read(samplers.data(), n_rows);
    std::vector<std::vector<uint32_t>> windows(n_rows);
    bool weigh = false;
    for (uint32_t i = 0; i < n_rows; i++) {
        weigh |= samplers[i].weigh;
        if (!samplers[i].window) continue;
        windows[i].resize(samplers[i].window_len);
        read(windows[i].data(), windows[i].size());
        samplers[i].window = address(windows[i].data());
    }
    std::vector<KigoRow> rows(n_rows);
    for (uint32_t i = 0; i < n_rows; i++) rows[i].slot = i;
    std::vector<KigoSampled> outcomes(n_rows * KIGO_SAMPLE_OUTCOMES);
    const size_t work_bytes = sizeof(KigoSampleWork) + (n_vocab + kChunk - 1) / kChunk * sizeof(KigoSampleChunk);
    std::vector<uint4> work(n_rows * work_bytes / sizeof(uint4));
    const uint32_t n_slices = (n_vocab + KIGO_SAMPLE_SLICE - 1) / KIGO_SAMPLE_SLICE;

    for (uint32_t step = 0; step < n_steps; step++) {
        std::vector<float> logits(n_rows * n_vocab);
        read(logits.data(), logits.size());
        KigoSample params = {};
        params.logits = address(logits.data());
        params.rows = address(rows.data());
        params.samplers = address(samplers.data());
        params.outcomes = address(outcomes.data());
        params.work = address(work.data());
        params.work_bytes = work_bytes;
        params.n_vocab = n_vocab;
        std::vector<uint32_t> serials;
        for (const KigoSampler& sampler : samplers) serials.push_back(sampler.serial + 1);
        // A block has one slice, or several.
        launch(1 + rand() % n_slices, n_rows, sample_scan, params, s);
        if (weigh) {
            launch(n_slices, n_rows, sample_weigh, params, s);
            launch(n_slices, n_rows, sample_gather, params, s);
        }
        for (uint32_t i = 0; i < n_rows; i++) {
            const auto* left = reinterpret_cast<const KigoSampleWork*>(reinterpret_cast<const char*>(work.data()) + i * work_bytes);
            const uint64_t* sums = left->sums[0];
            if (left->scanned || left->weighed || left->gathered || left->complement || left->n_keys ||
                std::any_of(sums, sums + sizeof left->sums / sizeof *sums, [](uint64_t sum) { return sum != 0; })) {
                emulator::fail("the workspace is not left zero");
            }
            const uint64_t outcome = outcomes[i * KIGO_SAMPLE_OUTCOMES + serials[i] % KIGO_SAMPLE_OUTCOMES].outcome;
            if (outcome >> 32 != serials[i]) emulator::fail("nothing was sampled");
            fwrite(&outcome, sizeof outcome, 1, stdout);
        }
    }
}

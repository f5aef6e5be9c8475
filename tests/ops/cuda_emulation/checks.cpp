// Walks over the kernels' index arithmetic, for tests/ops/test_cuda_emulation.py. Each returns 0 when all is well.
#include "gram_tiles.cuh"

#include <vector>

extern "C" void pc_emulated_seed(unsigned seed) { emulated::seed = seed; }

// Every pair i <= j < M lies in exactly one element of the tiles, and each tile belongs to a role that reads its
// octets.
extern "C" int pc_check_tiles(int M) {
    using namespace pc;
    const int kTiles = M <= 16 * kSmall ? kSmall : kLarge, roles = roles_of(M);
    std::vector<int> seen(size_t(M) * M, 0);
    for (int tile = 0; tile < tiles_of(kTiles, roles); ++tile) {
        for (int i = 0; i < kTileElements; ++i) {
            const Place place = place_of(kTiles, tile, i % kWarp, i / kWarp);
            if (place.row <= place.column && place.column < M) ++seen[size_t(place.row) * M + place.column];
        }
    }
    for (int i = 0; i < M; ++i) {
        for (int j = i; j < M; ++j) {
            if (seen[size_t(i) * M + j] != 1) return 1 + i * M + j;
        }
    }
    int next = 0;
    for (int role = 0; role < roles; ++role) {
        if (first_tile_of(kTiles, role) != next) return -1 - role;
        next += tiles_of_role(kTiles, role);
    }
    return next == tiles_of(kTiles, roles) ? 0 : -100;
}

// Every row below its sequence's length lies in exactly one block, no other row in any.
extern "C" int pc_check_rows(int64_t N, int64_t S, const int64_t *lengths, int64_t least, int64_t most,
                             int64_t wanted) {
    using namespace pc;
    const Blocks cut = cut_rows(S, 1, least, most, wanted);
    if (cut.rows < least || cut.rows > most) return 1;
    std::vector<int> seen(size_t(N) * S, 0);
    for (int64_t block = 0; block < N * cut.blocks; ++block) {
        const Stretch stretch = stretch_of(block, cut, lengths, S);
        for (int64_t row = 0; row < stretch.rows; ++row) ++seen[stretch.sequence * S + stretch.first + row];
    }
    for (int64_t n = 0; n < N; ++n) {
        for (int64_t s = 0; s < S; ++s) {
            if (seen[n * S + s] != (s < clamp_length(lengths, n, S))) return 2;
        }
    }
    return 0;
}

// The channels of a team's lanes are 0 .. kTeam * kVector - 1, each once, wide and narrow.
template <bool kWide, int kTeam, int kVector>
bool each_once() {
    std::vector<int> seen(kTeam * kVector, 0);
    for (int member = 0; member < kTeam; ++member) {
        for (int e = 0; e < kVector; ++e) ++seen[pc::channel_of<kWide, kTeam, kVector>(member, e)];
    }
    for (int count : seen) {
        if (count != 1) return false;
    }
    return true;
}

extern "C" int pc_check_channels() {
    return each_once<true, 32, 8>() && each_once<false, 32, 8>() && each_once<true, 32, 4>() &&
                   each_once<false, 32, 4>() && each_once<true, 4, 8>() && each_once<false, 4, 4>() &&
                   each_once<true, 4, 2>() && each_once<false, 4, 2>()
               ? 0
               : 1;
}

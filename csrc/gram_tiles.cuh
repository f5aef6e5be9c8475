// layer_gram's map of the upper triangle: which warp forms which 16 x 8 tiles of a token's Gram matrix, and where each
// element of a tile is. Plain arithmetic; a test walks it for every number of states and finds each pair once.
//
// States come in octets, 8 rows of the matrix: a 16-row tile is two octets, an 8-column tile is one. A group is the
// states that one warp can hold in registers, kTiles tiles of 16 rows (3 for up to 48 states, else 4). A role is a set
// of tiles:
//   role 0: the upper triangle of states 0..16 * kTiles
// and, for 65 to 128 states, where the matrix has two groups,
//   role 1: the upper triangle of states 64..127
//   role 2: states 0..63 against 64..95
//   role 3: states 0..63 against 96..127
#pragma once

#include "cuda_common.cuh"

namespace pc {

constexpr int kOctet = 8;
constexpr int kTileElements = 128;  // 16 x 8, four a lane
constexpr int kSmall = 3, kLarge = 4;
constexpr int kMaxStates = 128;

// Tiles of a triangle of `tiles` rows of tiles: row i has the columns 2i .. 2 * tiles - 1.
PC_BOTH constexpr int triangle_tiles(int tiles) { return tiles * (tiles + 1); }

constexpr int kAcross = 4;  // rows, and columns, of tiles of roles 2 and 3
constexpr int kAcrossTiles = kAcross * kAcross;
constexpr int kAcrossOctets = 2 * kAcross + kAcross;  // the octets a warp reads: its rows', then its columns'

PC_BOTH constexpr int roles_of(int64_t M) { return M > 16 * kLarge ? 4 : 1; }

PC_BOTH constexpr int tiles_of(int kTiles, int roles) {
    return roles == 1 ? triangle_tiles(kTiles) : 2 * triangle_tiles(kLarge) + 2 * kAcrossTiles;
}

PC_BOTH constexpr int first_tile_of(int kTiles, int role) {
    return role < 2 ? role * triangle_tiles(kTiles) : 2 * triangle_tiles(kLarge) + (role - 2) * kAcrossTiles;
}

PC_BOTH constexpr int tiles_of_role(int kTiles, int role) { return role < 2 ? triangle_tiles(kTiles) : kAcrossTiles; }

// The octet of states that a warp's v-th load reads.
PC_BOTH constexpr int octet_of(int role, int v) {
    if (role < 2) return role * 2 * kLarge + v;
    return v < 2 * kAcross ? v : 2 * kLarge + (role - 2) * kAcross + v - 2 * kAcross;
}

struct Place {
    int row, column;
};

// The first row and column of a tile, counted over all roles. Tiles of a role go row by row.
PC_BOTH Place corner_of(int kTiles, int tile) {
    int role = 0;
    while (role < 3 && tile >= first_tile_of(kTiles, role + 1)) ++role;
    int index = tile - first_tile_of(kTiles, role), i = 0;
    if (role >= 2) {
        return {16 * (index / kAcross), kOctet * octet_of(role, 2 * kAcross + index % kAcross)};
    }
    while (index >= 2 * (kTiles - i)) index -= 2 * (kTiles - i++);
    return {kOctet * octet_of(role, 2 * i), kOctet * octet_of(role, 2 * i + index)};
}

// Where element e of a lane's four lies in a tile: the accumulator fragment of mma.m16n8 (PTX ISA, "Matrix fragments").
PC_BOTH Place place_in_tile(int lane, int e) { return {lane / 4 + 8 * (e / 2), lane % 4 * 2 + e % 2}; }

PC_BOTH Place place_of(int kTiles, int tile, int lane, int e) {
    const Place corner = corner_of(kTiles, tile), inside = place_in_tile(lane, e);
    return {corner.row + inside.row, corner.column + inside.column};
}

}  // namespace pc

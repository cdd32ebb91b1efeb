// Package library holds the recipes of the official images: one folder each,
// with a Dockerfile, a manifest.json and the files that go into the image
// (rootfs). format/recipe says what they may contain; `berth library` makes them.
package library

import "embed"

// Files has one folder for each image.
//
//go:embed */Dockerfile */manifest.json all:*/rootfs
var Files embed.FS

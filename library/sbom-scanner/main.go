// Command sbom-scanner is the one program of the image that lists what a built
// image holds: BuildKit runs it as the generator of SBOMs (its protocol is
// docs/attestations/sbom-protocol.md of moby/buildkit).
package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/berth-project/berth/format/sbom"
)

// tool is the creator that documents name.
const tool = "berth-sbom-scanner-1"

func main() {
	if err := run(os.Getenv, os.Stdout, time.Now()); err != nil {
		fmt.Fprintln(os.Stderr, "sbom-scanner:", err)
		os.Exit(1)
	}
}

// run scans the root that the environment names and those beside it.
func run(env func(string) string, out io.Writer, now time.Time) error {
	to, core, extras := env("BUILDKIT_SCAN_DESTINATION"), env("BUILDKIT_SCAN_SOURCE"), env("BUILDKIT_SCAN_SOURCE_EXTRAS")
	if to == "" || core == "" {
		return errors.New("BUILDKIT_SCAN_DESTINATION and BUILDKIT_SCAN_SOURCE are not set: a build with --attest type=sbom sets them")
	}
	roots := []string{core}
	if extras != "" {
		list, err := os.ReadDir(extras)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range list {
			if e.IsDir() {
				roots = append(roots, filepath.Join(extras, e.Name()))
			}
		}
	}
	for _, root := range roots {
		if err := scan(root, to, out, now); err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(root), err)
		}
	}
	return nil
}

func scan(at, to string, out io.Writer, now time.Time) error {
	// Links in the root may not lead out of it.
	root, err := os.OpenRoot(at)
	if err != nil {
		return err
	}
	defer root.Close()
	found, err := sbom.Scan(root.FS())
	if err != nil {
		return err
	}
	name := filepath.Base(at)
	text, err := found.Statement(name, tool, now)
	if err != nil {
		return err
	}
	kinds := map[string]int{}
	for _, p := range found.Packages {
		kinds[p.Type]++
	}
	fmt.Fprintf(out, "%s: %d packages", name, len(found.Packages))
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		fmt.Fprintf(out, ", %d %s", kinds[kind], kind)
	}
	fmt.Fprintln(out)
	for _, u := range found.Unread {
		fmt.Fprintf(out, "%s: %s is not read: packages of RPM are not listed\n", name, u)
	}
	return os.WriteFile(filepath.Join(to, name+".spdx.json"), text, 0o644)
}

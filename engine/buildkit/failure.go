package buildkit

import (
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/dfgitutil"
	"github.com/moby/buildkit/util/grpcerrors"

	"github.com/berth-project/berth/core/build"
	"github.com/berth-project/berth/lib/fault"
	"github.com/berth-project/berth/lib/redact"
)

// How BuildKit's frontend begins to tell what went wrong before any
// instruction, and a step that ended with a code.
const (
	noFile      = "failed to read dockerfile: "
	noArchive   = "failed to read downloaded context: "
	notLoaded   = "failed to load cache key: "
	notParsed   = "dockerfile parse error"
	emptyFile   = "the Dockerfile cannot be empty"
	emptyParsed = "file with no instructions"
	noStages    = "dockerfile contains no stages to build"
	noStageYet  = "no build stage in current context"
	noTarget    = "target stage "
	noPlatform  = "failed to parse target platform "
	noSyntax    = "failed to resolve source metadata for " // the frontend's image; of a base the name comes first
	badSyntax   = "invalid context name "
)

var (
	stepEnded = regexp.MustCompile(`^process ("(?:[^"\\\\]|\\\\.)*") did not complete successfully: exit code: (\d+)(: .*)?$`)
	badStatus = regexp.MustCompile(`invalid response status (\d{3})`)
	checksum  = regexp.MustCompile(`^failed to compute cache key: failed to calculate checksum of ref \S+: `)
	fileGone  = regexp.MustCompile(`^open (.*): no such file or directory$`)
)

// plainText takes off an error what the way through gRPC has put before it.
func plainText(err error) string {
	text := err.Error()
	if st, ok := grpcerrors.AsGRPCStatus(err); ok && st != nil {
		text = strings.TrimPrefix(text, "rpc error: code = "+st.Code().String()+" desc = ")
		text = strings.TrimPrefix(text, st.Code().String()+": ")
	}
	return checksum.ReplaceAllString(strings.TrimPrefix(text, "failed to solve: "), "")
}

// beforehand tells of a failure whether no instruction was looked at.
func beforehand(text string) bool {
	for _, p := range []string{noFile, noArchive, notParsed, emptyFile, emptyParsed, noStages, noStageYet, noTarget, noPlatform, noSyntax, badSyntax} {
		if strings.HasPrefix(text, p) {
			return true
		}
	}
	return false
}

// failure words what BuildKit says of a build: it is the Dockerfile's fault, or
// that of the place where the context should have come from.
func failure(r build.Request, text string) error {
	if m := stepEnded.FindStringSubmatch(text); m != nil {
		command, err := strconv.Unquote(m[1])
		code, notNumber := strconv.Atoi(m[2])
		if err == nil && notNumber == nil {
			return &build.ExitError{Command: command, Code: code, Why: m[3], Msg: text}
		}
	}
	if rest, ok := strings.CutPrefix(text, noFile); ok {
		if m := fileGone.FindStringSubmatch(rest); m != nil {
			return fault.Invalidf("Cannot locate specified Dockerfile: %s", m[1])
		}
	}
	for _, p := range []string{noFile, noArchive} {
		rest, ok := strings.CutPrefix(text, p+notLoaded)
		if !ok || r.Remote == "" {
			continue
		}
		say := fault.Internalf
		if m := badStatus.FindStringSubmatch(rest); m != nil {
			switch m[1] {
			case strconv.Itoa(http.StatusNotFound):
				say = fault.NotFoundf
			case strconv.Itoa(http.StatusUnauthorized):
				say = fault.Unauthenticatedf
			case strconv.Itoa(http.StatusForbidden):
				say = fault.Forbiddenf
			}
		}
		return say("error downloading remote context %s: %s", redact.URLs(r.Remote), rest)
	}
	return fault.Invalidf("%s", text)
}

// isRemote tells whether BuildKit takes an address for a git repository or a file to download.
func isRemote(address string) bool {
	if strings.HasPrefix(address, "http://") || strings.HasPrefix(address, "https://") {
		return true
	}
	_, isGit, err := dfgitutil.ParseGitRef(address)
	return isGit && err == nil
}

package sbom

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

const (
	predicate  = "https://spdx.dev/Document"
	statement  = "https://in-toto.io/Statement/v0.1"
	unasserted = "NOASSERTION"
)

// document is SPDX 2.3 in JSON, as far as it is used here.
type document struct {
	Version       string         `json:"spdxVersion"`
	DataLicence   string         `json:"dataLicense"`
	ID            string         `json:"SPDXID"`
	Name          string         `json:"name"`
	Namespace     string         `json:"documentNamespace"`
	Comment       string         `json:"comment,omitempty"`
	Creation      creation       `json:"creationInfo"`
	Packages      []element      `json:"packages"`
	Relationships []relationship `json:"relationships"`
}

type creation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type element struct {
	ID               string      `json:"SPDXID"`
	Name             string      `json:"name"`
	Version          string      `json:"versionInfo,omitempty"`
	Location         string      `json:"downloadLocation"`
	Analysed         bool        `json:"filesAnalyzed"`
	LicenceConcluded string      `json:"licenseConcluded"`
	LicenceDeclared  string      `json:"licenseDeclared"`
	LicenceComments  string      `json:"licenseComments,omitempty"`
	Copyright        string      `json:"copyrightText"`
	Source           string      `json:"sourceInfo,omitempty"`
	Purpose          string      `json:"primaryPackagePurpose,omitempty"`
	References       []reference `json:"externalRefs,omitempty"`
}

type reference struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type relationship struct {
	From string `json:"spdxElementId"`
	Type string `json:"relationshipType"`
	To   string `json:"relatedSpdxElement"`
}

// Statement words a result as an in-toto statement whose predicate is an SPDX
// document about the root of that name. Who asked adds the subject.
func (r Result) Statement(name, tool string, now time.Time) ([]byte, error) {
	d := r.document(name, tool, now)
	b, err := json.Marshal(d)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b)
	// A name that is unique, and nobody's address.
	d.Namespace = "https://berth.invalid/spdx/" + hex.EncodeToString(sum[:])
	return json.Marshal(map[string]any{"_type": statement, "predicateType": predicate, "subject": []any{}, "predicate": d})
}

func (r Result) document(name, tool string, now time.Time) document {
	d := document{
		Version: "SPDX-2.3", DataLicence: "CC0-1.0", ID: "SPDXRef-DOCUMENT", Name: name,
		Creation: creation{Created: now.UTC().Format(time.RFC3339), Creators: []string{"Tool: " + tool}},
	}
	if len(r.Unread) > 0 {
		d.Comment = "Not read, of a package manager that is not known here: " + strings.Join(r.Unread, ", ")
	}
	root := element{ID: "SPDXRef-DocumentRoot", Name: name, Purpose: "CONTAINER"}
	d.add(d.ID, "DESCRIBES", root)
	if r.OS.ID != "" {
		d.add(root.ID, "CONTAINS", element{ID: "SPDXRef-OperatingSystem", Name: r.OS.ID, Version: r.OS.Version, Source: r.OS.Name, Purpose: "OPERATING-SYSTEM"})
	}
	for _, p := range r.Packages {
		url := p.URL()
		sum := sha256.Sum256([]byte(url))
		e := element{
			ID: "SPDXRef-Package-" + hex.EncodeToString(sum[:8]), Name: p.short(), Version: p.Version, Source: p.places(),
			References: []reference{{Category: "PACKAGE-MANAGER", Type: "purl", Locator: url}},
		}
		if p.Licence != "" {
			// It need not be an expression of SPDX.
			e.LicenceComments = "Declared as: " + p.Licence
		}
		d.add(root.ID, "CONTAINS", e)
	}
	return d
}

// short is the name without the namespace that only the URL has.
func (p Package) short() string {
	if p.Type == "deb" || p.Type == "apk" {
		return p.Name[strings.IndexByte(p.Name, '/')+1:]
	}
	return p.Name
}

func (p Package) places() string {
	text := "found in " + strings.Join(p.Places, ", ")
	if p.More > 0 {
		text += fmt.Sprintf(" and %d more", p.More)
	}
	return text
}

func (d *document) add(from, how string, e element) {
	e.Location, e.LicenceConcluded, e.LicenceDeclared, e.Copyright = unasserted, unasserted, unasserted, unasserted
	d.Packages = append(d.Packages, e)
	d.Relationships = append(d.Relationships, relationship{From: from, Type: how, To: e.ID})
}

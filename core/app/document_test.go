package app

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/berth-project/berth/lib/fault"
)

func TestADocumentWithAnEmptyPoolIsRefused(t *testing.T) {
	for project, refused := range map[string]bool{
		`{"name": "x", "networks": {"n": {"ipam": {"config": [null]}}}}`:                      true,
		`{"name": "x", "networks": {"n": {"ipam": {"config": [{"subnet": "10.1.0.0/24"}]}}}}`: false,
	} {
		_, err := Document{Name: "x", Project: json.RawMessage(project)}.App()
		if errors.Is(err, fault.ErrInvalid) != refused {
			t.Errorf("%s: %v", project, err)
		}
	}
}

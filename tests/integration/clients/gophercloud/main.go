// Calls gophercloud as test_gophercloud.py asks: one call in a line of JSON on standard input, its outcome in a
// line on standard output.
//
//	gophercloud 2|3            signs in at Keystone with the variables of an RC file
//	gophercloud 2|3 ENDPOINT   goes to the endpoint of a service without Keystone
//
// A call is {"do": "backups.Create", "id": …, "opts": {…}, "at": "3.43"}: a function of the library, the id and
// the options that it takes, and the microversion to set.  The outcome is {"is": …}, what the library made of the
// answer, or {"error": …, "code": 404}.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"reflect"

	"github.com/gophercloud/gophercloud"
	"github.com/gophercloud/gophercloud/openstack"
	"github.com/gophercloud/gophercloud/openstack/blockstorage/apiversions"
	"github.com/gophercloud/gophercloud/openstack/blockstorage/extensions/backups"
	"github.com/gophercloud/gophercloud/openstack/blockstorage/extensions/quotasets"
	"github.com/gophercloud/gophercloud/openstack/blockstorage/extensions/services"
	"github.com/gophercloud/gophercloud/openstack/blockstorage/extensions/volumeactions"
	"github.com/gophercloud/gophercloud/openstack/blockstorage/noauth"
	snapshots2 "github.com/gophercloud/gophercloud/openstack/blockstorage/v2/snapshots"
	volumes2 "github.com/gophercloud/gophercloud/openstack/blockstorage/v2/volumes"
	snapshots3 "github.com/gophercloud/gophercloud/openstack/blockstorage/v3/snapshots"
	volumes3 "github.com/gophercloud/gophercloud/openstack/blockstorage/v3/volumes"
	"github.com/gophercloud/gophercloud/pagination"
)

type call struct {
	Do   string          `json:"do"`
	ID   string          `json:"id"`
	Opts json.RawMessage `json:"opts"`
	At   string          `json:"at"`
}

// into decodes a call's options into the library's own.
func (c call) into(opts interface{}) {
	if len(c.Opts) > 0 {
		if err := json.Unmarshal(c.Opts, opts); err != nil {
			panic(err)
		}
	}
}

// connect returns a client, by Keystone's catalogue or for an endpoint.
func connect(version string, endpoint string) (*gophercloud.ServiceClient, error) {
	if endpoint != "" {
		provider, err := noauth.NewClient(gophercloud.AuthOptions{Username: "go", TenantName: "gophers"})
		if err != nil {
			return nil, err
		}
		return noauth.NewBlockStorageNoAuth(provider, noauth.EndpointOpts{CinderEndpoint: endpoint})
	}
	options, err := openstack.AuthOptionsFromEnv()
	if err != nil {
		return nil, err
	}
	provider, err := openstack.AuthenticatedClient(options)
	if err != nil {
		return nil, err
	}
	where := gophercloud.EndpointOpts{Region: os.Getenv("OS_REGION_NAME")}
	if version == "2" {
		return openstack.NewBlockStorageV2(provider, where)
	}
	return openstack.NewBlockStorageV3(provider, where)
}

// all follows a list to its end; extract takes the items from a page.
func all(pager pagination.Pager, extract func(pagination.Page) (interface{}, error)) (interface{}, error) {
	pages, err := pager.AllPages()
	if err != nil {
		return nil, err
	}
	return extract(pages)
}

func do(client *gophercloud.ServiceClient, c call) (interface{}, error) {
	switch c.Do {
	case "endpoint":
		return client.Endpoint, nil
	case "apiversions.List":
		// The list is at the root.
		root := *client
		root.Endpoint = c.ID
		return all(apiversions.List(&root), func(p pagination.Page) (interface{}, error) {
			return apiversions.ExtractAPIVersions(p)
		})
	case "backups.Create":
		var opts backups.CreateOpts
		c.into(&opts)
		return backups.Create(client, opts).Extract()
	case "backups.Get":
		return backups.Get(client, c.ID).Extract()
	case "backups.List":
		var opts backups.ListOpts
		c.into(&opts)
		return all(backups.List(client, opts), func(p pagination.Page) (interface{}, error) {
			return backups.ExtractBackups(p)
		})
	case "backups.Update":
		var opts backups.UpdateOpts
		c.into(&opts)
		return backups.Update(client, c.ID, opts).Extract()
	case "backups.Delete":
		return nil, backups.Delete(client, c.ID).ExtractErr()
	case "backups.RestoreFromBackup":
		var opts backups.RestoreOpts
		c.into(&opts)
		return backups.RestoreFromBackup(client, c.ID, opts).Extract()
	case "backups.Export":
		return backups.Export(client, c.ID).Extract()
	case "backups.Import":
		var opts backups.ImportOpts
		c.into(&opts)
		return backups.Import(client, opts).Extract()
	case "quotasets.Get":
		return quotasets.Get(client, c.ID).Extract()
	case "quotasets.GetUsage":
		return quotasets.GetUsage(client, c.ID).Extract()
	case "quotasets.Update":
		var opts quotasets.UpdateOpts
		c.into(&opts)
		return quotasets.Update(client, c.ID, opts).Extract()
	case "quotasets.Delete":
		return nil, quotasets.Delete(client, c.ID).ExtractErr()
	case "services.List":
		var opts services.ListOpts
		c.into(&opts)
		return all(services.List(client, opts), func(p pagination.Page) (interface{}, error) {
			return services.ExtractServices(p)
		})
	case "volumeactions.ExtendSize":
		var opts volumeactions.ExtendSizeOpts
		c.into(&opts)
		return nil, volumeactions.ExtendSize(client, c.ID, opts).ExtractErr()
	case "v2/volumes.Create":
		var opts volumes2.CreateOpts
		c.into(&opts)
		return volumes2.Create(client, opts).Extract()
	case "v2/volumes.Get":
		return volumes2.Get(client, c.ID).Extract()
	case "v2/volumes.List":
		var opts volumes2.ListOpts
		c.into(&opts)
		return all(volumes2.List(client, opts), func(p pagination.Page) (interface{}, error) {
			return volumes2.ExtractVolumes(p)
		})
	case "v2/volumes.Update":
		var opts volumes2.UpdateOpts
		c.into(&opts)
		return volumes2.Update(client, c.ID, opts).Extract()
	case "v2/volumes.Delete":
		return nil, volumes2.Delete(client, c.ID, nil).ExtractErr()
	case "v2/snapshots.Create":
		var opts snapshots2.CreateOpts
		c.into(&opts)
		return snapshots2.Create(client, opts).Extract()
	case "v2/snapshots.List":
		var opts snapshots2.ListOpts
		c.into(&opts)
		return all(snapshots2.List(client, opts), func(p pagination.Page) (interface{}, error) {
			return snapshots2.ExtractSnapshots(p)
		})
	case "v2/snapshots.Delete":
		return nil, snapshots2.Delete(client, c.ID).ExtractErr()
	case "v3/volumes.Create":
		var opts volumes3.CreateOpts
		c.into(&opts)
		return volumes3.Create(client, opts).Extract()
	case "v3/volumes.Get":
		return volumes3.Get(client, c.ID).Extract()
	case "v3/volumes.List":
		var opts volumes3.ListOpts
		c.into(&opts)
		return all(volumes3.List(client, opts), func(p pagination.Page) (interface{}, error) {
			return volumes3.ExtractVolumes(p)
		})
	case "v3/volumes.Update":
		var opts volumes3.UpdateOpts
		c.into(&opts)
		return volumes3.Update(client, c.ID, opts).Extract()
	case "v3/volumes.Delete":
		return nil, volumes3.Delete(client, c.ID, nil).ExtractErr()
	case "v3/snapshots.Create":
		var opts snapshots3.CreateOpts
		c.into(&opts)
		return snapshots3.Create(client, opts).Extract()
	case "v3/snapshots.List":
		var opts snapshots3.ListOpts
		c.into(&opts)
		return all(snapshots3.List(client, opts), func(p pagination.Page) (interface{}, error) {
			return snapshots3.ExtractSnapshots(p)
		})
	case "v3/snapshots.Delete":
		return nil, snapshots3.Delete(client, c.ID).ExtractErr()
	}
	return nil, fmt.Errorf("no such call: %s", c.Do)
}

// code returns the HTTP status in one of the library's errors, 0 if there is none: each status has a type of its
// own, which embeds the one that knows the status.
func code(err error) int {
	found := reflect.ValueOf(err)
	if found.Kind() != reflect.Struct {
		return 0
	}
	if actual := found.FieldByName("Actual"); actual.IsValid() {
		return int(actual.Int())
	}
	return 0
}

func main() {
	endpoint := ""
	if len(os.Args) > 2 {
		endpoint = os.Args[2]
	}
	client, err := connect(os.Args[1], endpoint)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	// The header that asks for a microversion names the service by what stands here, and "volumev3", as it is in
	// the catalogue, is not its name.
	client.Type = "volume"
	out := json.NewEncoder(os.Stdout)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var c call
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			panic(err)
		}
		client.Microversion = c.At
		is, err := do(client, c)
		if err != nil {
			out.Encode(map[string]interface{}{"error": err.Error(), "code": code(err)})
		} else {
			out.Encode(map[string]interface{}{"is": is})
		}
	}
}

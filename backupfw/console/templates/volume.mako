<%inherit file="base.mako"/>
<%namespace name="parts" file="parts.mako"/>
<%def name="title()">${shown.named(volume.name, volume.id)}</%def>
<h1>${shown.named(volume.name, volume.id)}</h1>
<p class="count">
% if volume.status is None:
The volume is gone, its backups are there.
% else:
${shown.state(volume.status)}, ${volume.size} GiB, project ${volume.project_id}.
% endif
Last good backup: ${shown.since(volume.last_good, now)}; last verified: ${shown.since(volume.last_verified, now)}.
<small><code>${volume.id}</code></small></p>
% if line is not None:
<figure>
<svg class="line" viewBox="0 -10 1000 172" role="img" aria-label="Time line of ${len(line.bars)} backups, drawn to scale; the table below has the same">
<line x1="0" x2="1000" y1="130.5" y2="130.5"/>
% for bar in line.bars:
<g><title>${shown.named(bar.backup.name, bar.backup.id)}, ${shown.moment(bar.backup.moment)}: ${'incremental' if bar.backup.is_incremental else 'full'}, ${shown.human_size(bar.backup.new)} new, ${shown.human_size(bar.backup.shared)} shared</title>
<rect class="share" x="${bar.x}" y="${round(130 - bar.shared, 1)}" width="${bar.width}" height="${bar.shared}"/>
<rect class="own" x="${bar.x}" y="${round(130 - bar.shared - bar.new, 1)}" width="${bar.width}" height="${bar.new}"/>
% if not bar.backup.is_incremental:
<circle class="own" cx="${bar.x + bar.width / 2}" cy="139" r="4"/>
% endif
</g>
% endfor
<text x="0" y="158">${shown.moment(line.first)}</text>
<text x="1000" y="158" text-anchor="end">now</text>
</svg>
<figcaption><small><span class="key own"></span> new bytes, <span class="key share"></span> shared with other backups; as high as the drawing: ${shown.human_size(line.most)}. ● a full backup.</small></figcaption>
</figure>
% endif
% if may['create'] and volume.status is not None:
<section>
<h2>Back up now</h2>
<form method="post" action="${base}/volumes/${volume.id}/backup" class="row">
<input name="name" maxlength="255" placeholder="Name of the backup" aria-label="Name of the backup">
<select name="kind" aria-label="Kind">
<option value="incremental"${'' if volume.last_good else ' disabled'}>incremental</option>
<option value="full"${'' if volume.last_good else ' selected'}>full</option>
</select>
% if volume.status == 'in-use':
<label><input type="checkbox" name="force" checked> although it is in use</label>
% endif
<button>Back up</button>
</form>
${parts.same(f'POST /v3/{volume.project_id}/backups', '{"backup": {"volume_id": "' + volume.id + '", "incremental": ' + ('true' if volume.last_good else 'false') + '}}', f'backupfw backup create {volume.id}{" --incremental" if volume.last_good else ""}')}
% if may['plan']:
<p><a href="${base}/policies/new?${shown.query(volume=volume.id, project=volume.project_id)}">Let a policy back it up</a></p>
% endif
</section>
% endif
<section>
<h2>Backups</h2>
% if not backups:
<p>There is none.</p>
% else:
<div class="wide"><table>
<thead><tr><th scope="col">Backup</th><th scope="col">State</th><th scope="col">New and shared</th><th scope="col">Deleting it frees</th><th scope="col">Verified</th><th scope="col">Where</th><th scope="col"><span class="hidden">Actions</span></th></tr></thead>
<tbody>
% for one in backups:
<tr id="backup-${one.id}">
<th scope="row"><span title="${one.id}">${shown.named(one.name, one.id)}</span><small>${'incremental' if one.is_incremental else 'full'}, of ${shown.since(one.moment, now)}</small></th>
<td>${shown.state('damaged' if one.damaged else one.status)}${', kept' if one.kept else ''}
% if one.fail_reason:
<small>${one.fail_reason}</small>
% endif
</td>
<td>${shown.sized(one.new)}<small>and ${shown.sized(one.shared)}</small></td>
<td>${shown.freed(one.frees)}</td>
<td>
% if one.verified_at is None:
never
% else:
${shown.since(one.verified_at, now)}<small>${shown.state(one.verified_result)}${' (quick)' if one.verified_how == 'quick' else ''}</small>
% endif
% if one.verifying:
<small><a href="${base}/now">is being verified</a></small>
% endif
</td>
<td>${one.store or '-'}
% for store, status in one.copies:
<small>copy in ${store}: ${shown.state(status)}</small>
% endfor
</td>
<td class="actions">
% if one.status == 'available' and may['restore']:
<a class="button small quiet" href="${base}/volumes/${volume.id}/${one.id}/restore" aria-label="Restore ${shown.named(one.name, one.id)}">Restore</a>
% endif
% if one.status == 'available' and may['verify']:
<form method="post" action="${base}/volumes/${volume.id}/${one.id}/verify"><button class="small quiet" aria-label="Verify ${shown.named(one.name, one.id)}"${' disabled' if one.verifying else ''}>Verify</button></form>
% endif
% if may['update']:
<form method="post" action="${base}/volumes/${volume.id}/${one.id}/keep"><button name="keep" value="${'false' if one.kept else 'true'}" class="small quiet" aria-label="${'Keep no longer' if one.kept else 'Keep'} ${shown.named(one.name, one.id)}">${'Keep no longer' if one.kept else 'Keep'}</button></form>
% endif
% if one.status in ('available', 'error') and may['delete']:
<a class="button small quiet" href="${base}/volumes/${volume.id}/${one.id}/delete" aria-label="Delete ${shown.named(one.name, one.id)}">Delete</a>
% endif
</td>
</tr>
% endfor
</tbody></table></div>
% if place[2] > len(backups):
<p><small>${place[0]} to ${place[1]} of ${place[2]}.</small>
% if place[1] < place[2]:
<a href="${base}/volumes/${volume.id}?from=${place[1]}">Older</a>
% endif
</p>
% endif
% if may['update']:
${parts.same(f'POST /v3/{volume.project_id}/backups/ID/metadata', '{"metadata": {"backupfw:keep": "true"}}', 'openstack volume backup set --property backupfw:keep=true ID', 'Keep')}
% endif
% if may['verify']:
${parts.same(f'POST /v3/{volume.project_id}/backups/ID/action', '{"os-backupfw-verify": {}}', 'backupfw backup verify --by-service ID', 'Verify')}
% endif
% endif
</section>

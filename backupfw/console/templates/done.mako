<%inherit file="base.mako"/>
<%namespace name="parts" file="parts.mako"/>
<%def name="title()">What was done</%def>
<h1>What was done, and by whom</h1>
<p>What people and backup policies asked for. <a href="${base}/messages${f'?{shown.query(project=project)}' if project else ''}">What failed</a></p>
<form method="get" action="${base}/messages/done" class="row">
% if everywhere:
<input type="search" name="project" value="${project}" maxlength="255" placeholder="Project" aria-label="Project">
% endif
<input type="search" name="about" value="${about}" maxlength="36" placeholder="Id of a backup, volume or policy" aria-label="Id of a backup, volume or policy">
<button class="quiet">Show</button>
</form>
% if not actions:
<p>Nothing.</p>
% else:
<div class="wide"><table>
<thead><tr><th scope="col">When</th><th scope="col">What</th><th scope="col">By</th><th scope="col">Request</th></tr></thead>
<tbody>
% for one in actions:
<%
    name = shown.named(one.resource_name, one.resource_id)
%>\
<tr>
<td>${shown.since(one.created_at, now)}</td>
<th scope="row">${shown.ACTIONS.get(one.kind, one.kind)} \
% if one.kind.startswith('policy.') and one.kind != 'policy.delete':
<a href="${base}/policies/${one.resource_id}" title="${one.resource_id}">${name}</a>\
% elif one.volume_id:
<a href="${base}/volumes/${one.volume_id}${f'#backup-{one.resource_id}' if one.kind.startswith('backup.') else ''}" title="${one.resource_id}">${name}</a>\
% else:
<span title="${one.resource_id}">${name}</span>\
% endif
% if one.detail or everywhere:
<small>${one.detail or ''}${', ' if one.detail and everywhere else ''}${f'project {one.project_id}' if everywhere else ''}</small>
% endif
</th>
<td>
% if one.policy_id:
<a href="${base}/policies/${one.policy_id}">policy ${one.policy_id[:8]}</a>
% else:
${one.user_id or '-'}
% endif
</td>
<td><small>${one.request_id or '-'}</small></td>
</tr>
% endfor
</tbody></table></div>
% if more:
<p><a href="${base}/messages/done?${shown.query(project=project, about=about, before=str(actions[-1].id))}">Older</a></p>
% endif
% endif
<p><small>Records go by themselves after <code>[DEFAULT] action_ttl</code>.</small></p>
% if everywhere:
<p><small>As a command: <code>backupfw action list</code></small></p>
% endif
